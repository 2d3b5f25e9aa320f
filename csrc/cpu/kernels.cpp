// One call, from the caller's arrays to the caller's arrays. Compiled once per instruction set.
#include "kernels.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include "gradient.h"
#include "rounds.h"
#include "statistics.h"

#define MSK_STRING(name) #name
#define MSK_NAME(name) MSK_STRING(name)

namespace msk::MSK_ISA {
namespace {

inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

template <typename T>
class Solver {
 public:
  explicit Solver(const Problem& p) : p_(p), w_(p), rows_(w_.rows), columns_(w_.columns()) {}

  void run() {
    const Codes labels(p_.rows.labels, p_.rows.count);
    const Codes ids(p_.rows.ids, p_.rows.ids ? p_.rows.count : 0);
    sort_side(rows_, p_.rows, labels, &ids);
    if (!p_.self) sort_side(columns_, p_.columns, labels, &ids);
#pragma omp parallel num_threads(p_.threads)
    run_thread();
    if (p_.total_loss) write_total();
  }

 private:
  void run_thread() {
    Scratch<T> scratch = w_.scratch(thread_number());
    look_at(rows_, scratch);
    if (!p_.self) look_at(columns_, scratch);
#pragma omp single
    look_for_overflow();
    if (p_.job == Job::gradient) {
      read_term(rows_, p_.row_term);
      if (!p_.self) read_term(columns_, p_.column_term);
      add_gradient(scratch, true, true);
      return;
    }
    if (w_.loss.ranked()) rounds_.find_classes();
    for (bool last = false, first = true; !last; first = false) {
      last = w_.loss.ranked() ? rounds_.begin(first) : true;
      Statistics<T>(w_).run(scratch);
      write_statistics();
      if (p_.job != Job::statistics && wants_weights(p_)) add_gradient(scratch, first, last);
    }
  }

  void add_gradient(Scratch<T>& scratch, bool first_round, bool last_round) {
#pragma omp single
    {
      if (last_round) spread_poison();  // statistics of a later round would take it for their own
      w_.wave.restart();
    }
    Gradient<T>(w_).run(scratch, first_round, last_round);
  }

  void look_at(Side<T>& side, const Scratch<T>& scratch) {
#pragma omp for schedule(static)
    for (std::int64_t k = 0; k < side.axis.padded(); ++k)
      look_at_row(side, k, p_.depth, scratch.room);
  }

  // A product is at most |x| |r|, a squared distance (|x| + |r|)^2: with unit rows, or short ones,
  // nothing can overflow.
  void look_for_overflow() {
    rows_not_finite_ = any_poisoned(rows_);
    columns_not_finite_ = any_poisoned(columns_);
    if (p_.options.normalize) return;
    const double most = std::numeric_limits<T>::max() / 4;
    const double x = longest(rows_), r = longest(columns_);
    w_.may_overflow = (p_.options.distance == Distance::none ? x * r : (x + r) * (x + r)) >= most;
  }
  static bool any_poisoned(const Side<T>& side) {
    for (std::int64_t k = 0; k < side.axis.count; ++k)
      if (side.poisoned[k]) return true;
    return false;
  }
  static T longest(const Side<T>& side) {
    T most = T(0);
    for (std::int64_t k = 0; k < side.axis.count; ++k)
      most = side.norm[k] > most ? side.norm[k] : most;
    return most;
  }

  void read_term(Side<T>& side, const TermInput& term) {
#pragma omp for schedule(static)
    for (std::int64_t k = 0; k < side.axis.padded(); ++k) {
      if (k >= side.axis.count || !term.dloss) {
        mute(side, k);
        continue;
      }
      const auto read = [&](const void* array) {
        return static_cast<const T*>(array)[side.order[k]];
      };
      side.hardest_positive[k] = read(term.hardest_positive);
      side.hardest_negative[k] = read(term.hardest_negative);
      side.pos_sum[k] = read(term.pos_sum);
      side.neg_sum[k] = read(term.neg_sum);
      side.moment[k] = read(term.pos_moment);
      side.pos_kept[k] = Code<T>(term.pos_kept[side.order[k]]);
      side.neg_kept[k] = Code<T>(term.neg_kept[side.order[k]]);
      set_term(side, k, w_.loss, read(term.dloss));
      if (std::isnan(side.neg_sum[k])) side.poisoned[k] = 1;
      if (side.poisoned[k]) mute(side, k);
    }
  }

  void write_statistics() {
    write_statistics(rows_, p_.self ? rows_not_finite_ : columns_not_finite_, columns_, 0);
    if (p_.two_sided) write_statistics(columns_, rows_not_finite_, rows_, rows_.axis.count);
    if (p_.job == Job::statistics || w_.both) return;
#pragma omp for schedule(static)
    for (std::int64_t k = 0; k < columns_.axis.padded(); ++k) mute(columns_, k);
  }

  // Also turns the statistics into terms of the gradient. `begin`: where the side's losses begin.
  void write_statistics(Side<T>& side, bool others_not_finite, const Side<T>& others,
                        std::int64_t begin) {
    const bool some = others.axis.count > 0, all_nan = others_not_finite && some;
    const bool has_moment = w_.loss.needs_moment() || w_.loss.ranked();
#pragma omp for schedule(static)
    for (std::int64_t k = 0; k < side.axis.count; ++k) {
      if (all_nan || (side.poisoned[k] && some)) side.poisoned[k] = 1;
      const bool nan = side.poisoned[k] && some;
      const std::int64_t at = begin + side.order[k];
      const auto write = [&](void* out, T value) {
        static_cast<T*>(out)[at] = nan ? kNaN<T> : value;
      };
      if (p_.statistics.hardest_positive) {
        write(p_.statistics.hardest_positive, side.hardest_positive[k]);
        write(p_.statistics.hardest_negative, side.hardest_negative[k]);
        write(p_.statistics.pos_sum, side.pos_sum[k]);
        write(p_.statistics.neg_sum, side.neg_sum[k]);
        write(p_.statistics.pos_moment, has_moment ? side.moment[k] : T(0));
        p_.statistics.pos_kept[at] = nan ? 0 : side.pos_kept[k];
        p_.statistics.neg_kept[at] = nan ? 0 : side.neg_kept[k];
      }
      if (p_.job == Job::statistics) continue;
      const T dloss = p_.dloss ? static_cast<const T*>(p_.dloss)[at] : T(p_.loss_scale);
      write(p_.row_loss, set_term(side, k, w_.loss, dloss));
      if (p_.kept) p_.kept[at] = nan ? 0 : side.pos_kept[k] + side.neg_kept[k];
      if (nan) mute(side, k);
    }
  }

  // In double and in the caller's order, whatever the threads.
  void write_total() const {
    const T* const losses = static_cast<const T*>(p_.row_loss);
    double total = 0;
    const std::int64_t count = p_.rows.count + (p_.two_sided ? p_.columns.count : 0);
    for (std::int64_t i = 0; i < count; ++i) total += losses[i];
    *static_cast<T*>(p_.total_loss) = T(total * p_.loss_scale);
  }

  // The gradient of a sample is NaN if a weight of one of its pairs is.
  void spread_poison() {
    const bool rows = any_poisoned(rows_), columns = any_poisoned(columns_);
    const bool column_term = w_.both || p_.column_term.dloss;
    if (rows && (p_.self || p_.job == Job::loss_and_gradient || p_.d_columns)) poison_all(columns_);
    if (columns && column_term) poison_all(rows_);
  }
  static void poison_all(Side<T>& side) {
    for (std::int64_t k = 0; k < side.axis.count; ++k) side.poisoned[k] = 1;
  }

  const Problem& p_;
  Workspace<T> w_;
  Side<T>& rows_;
  Side<T>& columns_;
  Rounds<T> rounds_{w_};
  bool rows_not_finite_ = false, columns_not_finite_ = false;
};

template <typename T>
void plan_for(Problem& p, std::int64_t budget) {
  p.workspace = nullptr;
  p.only_tiles_read_columns = !p.self && !p.two_sided && !p.d_columns;
  const std::int64_t m = p.self ? p.rows.count : p.columns.count;
  const double products = double(p.rows.count) * double(m) * double(p.depth + 16);
  // Below this, waking a thread costs more than it saves.
  constexpr double worth_a_thread = 1 << 20;
  if (products / worth_a_thread < p.threads) p.threads = int(products / worth_a_thread) + 1;
  p.stash_bytes = 0;
  p.rank_capacity = 0;
  if (PairLoss<T>(p.rules, p.options.max_positive_similarity).ranked()) {
    const SideInput& candidates = p.self ? p.rows : p.columns;
    p.rank_capacity = ranks_for(p.depth, largest_class(candidates.labels, candidates.count));
  }
  if (p.job != Job::gradient) {
    const Grid grid(p.rows.count, m, p.self, !p.only_tiles_read_columns);
    p.stash_bytes = grid.tiles() * Wave<T>::stash_size(grid);
    const std::int64_t bookkeeping = Workspace<T>(p).bookkeeping;
    if (bookkeeping + p.stash_bytes > budget) {
      p.stash_bytes = 0;
      p.stash_bytes = budget - Workspace<T>(p).bookkeeping;
      if (p.stash_bytes < 0) p.stash_bytes = 0;
    }
  }
  p.workspace_bytes = Workspace<T>(p).carver.used();
}

void plan(Problem& p, std::int64_t budget) {
  computes_in_double(p.dtype) ? plan_for<double>(p, budget) : plan_for<float>(p, budget);
}

void solve(const Problem& p) {
  computes_in_double(p.dtype) ? Solver<double>(p).run() : Solver<float>(p).run();
}

template <typename T>
void row_loss_of(const Rules& rules, const TermInput& statistics, void* out, std::int64_t count) {
  const PairLoss<T> loss(rules, kInfinity<T>);
  const auto read = [](const void* array, std::int64_t i) {
    return static_cast<const T*>(array)[i];
  };
  for (std::int64_t i = 0; i < count; ++i) {
    const RowSums<T> sums{read(statistics.pos_sum, i), read(statistics.neg_sum, i),
                          read(statistics.pos_moment, i), T(statistics.pos_kept[i]),
                          T(statistics.neg_kept[i])};
    // A row that is not finite kept nothing, of which many losses make 0.
    static_cast<T*>(out)[i] = std::isnan(sums.negative) ? kNaN<T> : loss.finish(sums).loss;
  }
}

void row_loss(DType dtype, const Rules& rules, const TermInput& statistics, void* out,
              std::int64_t count) {
  const auto run = computes_in_double(dtype) ? row_loss_of<double> : row_loss_of<float>;
  run(rules, statistics, out, count);
}

template <typename T>
void exp_of(const T* in, T* out, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += kLanes<T>) {
    const std::int64_t filled = count - i < kLanes<T> ? count - i : kLanes<T>;
    T lanes[kLanes<T>] = {};
    std::memcpy(lanes, in + i, filled * sizeof(T));
    store(lanes, exp<T>(load(lanes)));
    std::memcpy(out + i, lanes, filled * sizeof(T));
  }
}

void exp_any(DType dtype, const void* in, void* out, std::int64_t count) {
  computes_in_double(dtype)
      ? exp_of(static_cast<const double*>(in), static_cast<double*>(out), count)
      : exp_of(static_cast<const float*>(in), static_cast<float*>(out), count);
}

}  // namespace

Kernels kernels() { return {MSK_NAME(MSK_ISA), plan, solve, row_loss, exp_any}; }

}  // namespace msk::MSK_ISA
