// Gradient with respect to the embeddings: dX = W R and dR = W' X in tiles, W the pair weights; of
// distances the same sums over differences of rows.
#pragma once

#include <type_traits>

#include "weights.h"
#include "workspace.h"

namespace msk::MSK_ISA {

template <typename T>
class Gradient {
 public:
  explicit Gradient(Workspace<T>& w)
      : w_(w), rows_(w.rows), columns_(w.columns()), grid_(w.grid), wave_(w.wave) {}

  // Called by every thread of a parallel region; both sides have their terms set. Of several
  // rounds each adds to what those before have left.
  void run(Scratch<T>& scratch, bool first_round, bool last_round) {
    const int targets = grid_.rows.blocks + (w_.problem.d_columns ? grid_.columns.blocks : 0);
    const int first_target = w_.problem.d_rows ? 0 : grid_.rows.blocks;
    const int chunks = int((w_.depth + Scratch<T>::kChunk - 1) / Scratch<T>::kChunk);
    const int group = columns_.held ? 1 : blocks_together(targets * chunks);
    const int groups = (targets - first_target + group - 1) / group;
    if (first_round && w_.problem.d_rows) clear(rows_, static_cast<T*>(w_.problem.d_rows));
    if (first_round && w_.problem.d_columns) clear(columns_, static_cast<T*>(w_.problem.d_columns));
    for (;;) {
#pragma omp single
      {
        if (w_.problem.weight_sums) add_totals();
        wave_.collect(grid_, w_.problem.job == Job::gradient ? nullptr : w_.states);
      }
      if (wave_.size == 0) break;
#pragma omp for schedule(dynamic, 1)
      for (int e = 0; e < wave_.size; ++e) weigh(e, scratch);
#pragma omp for schedule(dynamic, 1)
      for (int task = 0; task < groups * chunks; ++task) {
        const int target = first_target + task / chunks * group;
        const int blocks = targets - target < group ? targets - target : group;
        add_products(target, blocks, task % chunks, scratch);
      }
    }
    if (!last_round) return;
    if (w_.problem.d_rows) finish(rows_, static_cast<T*>(w_.problem.d_rows));
    if (w_.problem.d_columns) finish(columns_, static_cast<T*>(w_.problem.d_columns));
  }

 private:
  using Entry = typename Wave<T>::Entry;
  using Touch = typename Wave<T>::Touch;

  // The rows of a block that sums are for, and the rows of the sums.
  struct Receivers {
    T* sums;
    const T* x;
    std::int64_t stride;
  };

  // Blocks of rows for one thread, which reads columns that are not held once for all of them.
  int blocks_together(int tasks) const {
    const int most = Scratch<T>::grouped(grid_), threads = w_.problem.threads;
    const int share = (tasks + threads - 1) / threads;
    return share < 1 ? 1 : share < most ? share : most;
  }

  // Of the wave that is done, in the order of its tiles: whatever the threads.
  void add_totals() {
    for (int e = 0; e < wave_.size; ++e)
      for (int k = 0; k < 4; ++k) w_.problem.weight_sums[k] += w_.totals[e].of[k];
  }

  void weigh(int e, Scratch<T>& scratch) {
    Entry& entry = wave_.entries[e];
    if (!w_.problem.weight_sums) return weigh(entry, nullptr, scratch);
    WeightSums<T> sums(w_.loss);
    weigh(entry, &sums, scratch);
    w_.totals[e] = sums.totals();
  }

  void weigh(Entry& entry, WeightSums<T>* sums, Scratch<T>& scratch) {
    const TileWeights<T> weights(rows_, columns_, entry.tile, w_.loss, w_.problem.options.distance,
                                 scratch, sums);
    const int columns = columns_.axis.block;
    TileState* state = entry.state;
    if (state && state->holds == TileState::Holds::pairs) {
      entry.pairs = w_.stash.template at<Pair<T>>(state->place);
      entry.listed = state->kept;
      weights.weigh(entry.pairs, entry.listed);
      sort_by_column(entry.pairs, entry.listed, columns);
      return;
    }
    const T* similarities = scratch.tile;
    if (entry.weights)
      w_.similarity(entry.tile, scratch, scratch.tile);
    else
      similarities = entry.weights = w_.stash.template at<T>(state->place);
    const TileView<T> tile =
        view(rows_, columns_, grid_, entry.tile, similarities, w_.loss.max_positive_similarity);
    const bool positives = may_have_positives(rows_, columns_, entry.tile);
    const std::int32_t kept = weights.weigh(tile, positives, entry.weights);
    if (kept > most_listed(grid_)) return;
    entry.listed =
        list_weights(entry.weights, tile.stride, tile.rows, tile.vectors(), scratch.pairs());
    entry.pairs = reinterpret_cast<Pair<T>*>(entry.weights);
    std::memcpy(entry.pairs, scratch.pairs(), entry.listed * sizeof(Pair<T>));
    sort_by_column(entry.pairs, entry.listed, columns);
  }

  // Adds the wave's tiles to one chunk of depth of `blocks` blocks from `target` on, which this
  // thread owns. Each block adds its tiles in the order of its touches.
  void add_products(int target, int blocks, int chunk, Scratch<T>& scratch) {
    const bool to_rows = target < grid_.rows.blocks;
    const int first = to_rows ? target : target - grid_.rows.blocks;
    const Side<T>& own = to_rows ? rows_ : columns_;
    const std::int64_t d = std::int64_t(chunk) * Scratch<T>::kChunk;
    const int width = int(w_.depth - d < Scratch<T>::kChunk ? w_.depth - d : Scratch<T>::kChunk);
    T* const out = static_cast<T*>(to_rows ? w_.problem.d_rows : w_.problem.d_columns) + d;
    const auto each_row = [&](auto visit) {
      for (int b = 0; b < blocks; ++b)
        if (wave_.first_touch[target + b] < wave_.first_touch[target + b + 1])
          for (int r = 0; r < own.axis.valid(first + b); ++r)
            visit(scratch.sum_row(b * own.axis.block + r),
                  out + own.order[own.first(first + b) + r] * w_.depth);
    };
    // The sums go on from what earlier waves left: where a wave ends must not show in the bits.
    each_row([&](T* sum, const T* from) { std::memcpy(sum, from, width * sizeof(T)); });
    OtherRows others{scratch.room, d, width};
    std::int32_t next[Scratch<T>::kMostGrouped];
    for (int b = 0; b < blocks; ++b) next[b] = wave_.first_touch[target + b];
    for (;;) {
      int least = -1;
      const auto other_of = [&](int b) {
        if (next[b] == wave_.first_touch[target + b + 1]) return -1;
        const Touch touch = wave_.touches[next[b]];
        const Tile t = wave_.entries[touch.entry].tile;
        return touch.transposed ? t.row : t.column;
      };
      for (int b = 0; b < blocks; ++b)
        if (const int other = other_of(b); other >= 0 && (least < 0 || other < least))
          least = other;
      if (least < 0) break;
      others.whole = false;
      for (int b = 0; b < blocks; ++b) {
        if (other_of(b) != least) continue;
        const Receivers into{scratch.sum_row(b * own.axis.block), own.block(first + b) + d,
                             own.stride};
        const Touch touch = wave_.touches[next[b]++];
        if (w_.problem.options.distance == Distance::none)
          add_tile<Sum::products>(touch, others, into);
        else
          add_tile<Sum::weighted_differences>(touch, others, into);
      }
    }
    each_row([&](const T* sum, T* to) { std::memcpy(to, sum, width * sizeof(T)); });
  }

  // Of one block, which several tiles in turn are multiplied by.
  struct OtherRows {
    T* room;
    std::int64_t d;
    int width;
    bool whole = false;  // all rows of the block are in the room
  };

  template <Sum of>
  void add_tile(Touch touch, OtherRows& others, const Receivers& into) {
    const Entry& e = wave_.entries[touch.entry];
    const bool transposed = touch.transposed;
    const Side<T>& other = transposed ? rows_ : columns_;
    const int block = transposed ? e.tile.row : e.tile.column;
    if (e.pairs) {
      add_pairs<of>(e, transposed, view_listed(e, other, block, others), others.width, into);
      return;
    }
    const int count = other.axis.valid(block);
    RowsView<T> x{others.room, kViewedElements};
    if (!others.whole)
      x = view_rows(other, other.first(block), count, others.d, others.width, others.room);
    others.whole = !other.held;
    const std::int64_t stride = grid_.columns.block;
    const int height =
        transposed ? columns_.axis.valid(e.tile.column) : rows_.axis.valid(e.tile.row);
    multiply<T, of>({e.weights, transposed ? 1 : stride, transposed ? stride : 1, x.x, x.stride,
                     into.sums, Scratch<T>::kChunk, into.x, into.stride},
                    height, others.width, count, true);
  }

  // As view_rows, of the columns that the pairs of a tile are of; a side that does not hold its
  // rows is never transposed.
  static RowsView<T> view_listed(const Entry& e, const Side<T>& other, int block,
                                 const OtherRows& of) {
    const std::int64_t first = other.first(block);
    if (other.held) return view_rows(other, first, 0, of.d, of.width, of.room);
    for (std::int32_t k = 0, last = -1; k < e.listed && !of.whole; ++k) {
      const std::int32_t column = e.pairs[e.pairs[k].by_column].column;
      if (column == last) continue;
      read_scaled(other, first + column, of.d, of.width, of.room + column * kViewedElements);
      last = column;
    }
    return {of.room, kViewedElements};
  }

  // Pairs come in runs of one receiving row, which stays in registers for its run.
  template <Sum of>
  static void add_pairs(const Entry& e, bool transposed, RowsView<T> others, int width,
                        const Receivers& receivers) {
    const auto pair = [&](std::int32_t k) -> const Pair<T>& {
      return e.pairs[transposed ? e.pairs[k].by_column : k];
    };
    const auto receiver = [&](std::int32_t k) { return transposed ? pair(k).column : pair(k).row; };
    for (std::int32_t k = 0; k < e.listed;) {
      std::int32_t end = k + 1;
      while (end < e.listed && receiver(end) == receiver(k)) ++end;
      T* into = receivers.sums + receiver(k) * Scratch<T>::kChunk;
      const T* own = receivers.x + receiver(k) * receivers.stride;
      const auto add = [&](auto vectors, int c) {
        Vec<T> sum[vectors] = {};
        for (std::int32_t i = k; i < end; ++i) {
          const Pair<T>& p = pair(i);
          const T* from = others.x + (transposed ? p.row : p.column) * others.stride + c;
          const Vec<T> weight = broadcast(p.value);
          for (int v = 0; v < vectors; ++v) {
            Vec<T> other = load(from + v * kLanes<T>);
            if constexpr (of == Sum::weighted_differences) other -= load(own + c + v * kLanes<T>);
            sum[v] = multiply_add<T>(weight, other, sum[v]);
          }
        }
        for (int v = 0; v < vectors; ++v) {
          T* at = into + c + v * kLanes<T>;
          store(at, load(at) + sum[v]);
        }
      };
      int c = 0;
      for (; c + 12 * kLanes<T> <= width; c += 12 * kLanes<T>)
        add(std::integral_constant<int, 12>{}, c);
      for (; c + 4 * kLanes<T> <= width; c += 4 * kLanes<T>)
        add(std::integral_constant<int, 4>{}, c);
      for (; c < width; c += kLanes<T>) add(std::integral_constant<int, 1>{}, c);
      k = end;
    }
  }

  void clear(const Side<T>& side, T* out) {
#pragma omp for schedule(static)
    for (std::int64_t k = 0; k < side.axis.count; ++k)
      std::memset(out + k * w_.depth, 0, w_.depth * sizeof(T));
  }

  // Through the normalisation x / |x|: dx = (g - (g . x) x) / |x|. A row under the floor of the
  // norm has no direction: dx = 0, or NaN where g is not finite.
  void finish(const Side<T>& side, T* out) {
#pragma omp for schedule(static)
    for (std::int64_t k = 0; k < side.axis.count; ++k) {
      T* dx = out + side.order[k] * w_.depth;
      if (side.poisoned[k]) {
        for (std::int64_t d = 0; d < w_.depth; ++d) dx[d] = kNaN<T>;
      } else if (w_.problem.options.normalize) {
        const T norm = side.norm[k];
        if (norm < T(kNormFloor)) {
          for (std::int64_t d = 0; d < w_.depth; ++d) dx[d] *= T(0);
          continue;
        }
        const T* x = side.x + k * side.stride;
        const T along = dot(dx, x);
        for (std::int64_t d = 0; d < w_.depth; ++d) dx[d] = (dx[d] - along * x[d]) / norm;
      }
    }
  }

  T dot(const T* a, const T* b) const {
    Vec<T> sum = {};
    std::int64_t d = 0;
    for (; d + kLanes<T> <= w_.depth; d += kLanes<T>)
      sum = multiply_add<T>(load(a + d), load(b + d), sum);
    T total = sum_lanes<T>(sum);
    for (; d < w_.depth; ++d) total += a[d] * b[d];
    return total;
  }

  Workspace<T>& w_;
  Side<T>& rows_;
  Side<T>& columns_;
  const Grid& grid_;
  Wave<T>& wave_;
};

}  // namespace msk::MSK_ISA
