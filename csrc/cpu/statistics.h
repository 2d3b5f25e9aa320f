// The scans: hardest positives, hardest negatives where mining needs them first, negatives,
// positives; of a ranked loss positives before negatives. Each is all tiles, then a merge of each
// row's cells in a fixed order.
#pragma once

#include "ranked_scan.h"
#include "workspace.h"

namespace msk::MSK_ISA {

enum class Scan { hardest_positive, hardest_negative, negatives, positives };

template <typename T>
class Statistics {
 public:
  explicit Statistics(Workspace<T>& w)
      : w_(w), rows_(w.rows), columns_(w.columns()), grid_(w.grid) {}

  // Called by every thread of a parallel region.
  void run(Scratch<T>& scratch) {
    if (w_.loss.general)
      run<true>(scratch);
    else
      run<false>(scratch);
  }

 private:
  template <bool general>
  void run(Scratch<T>& scratch) {
    scan<Scan::hardest_positive, false>(scratch);
    const auto& mining = w_.loss.mining;
    const bool ranked = w_.loss.ranked();
    // The scan of the negatives sees the hardest of those that are not too hard to be kept.
    const bool asked = w_.problem.statistics.hardest_positive && mining.bounds_negatives_above();
    const bool needed = asked || mining.hardest_negatives();
    clear_lists();
    if ((needed && !hardest_known()) || (ranked && mining.positives_need_negatives()))
      scan<Scan::hardest_negative, false>(scratch);
    if (ranked) scan<Scan::positives, general>(scratch);  // negatives are compared with these
    scan<Scan::negatives, general>(scratch);
    if (!ranked) scan<Scan::positives, general>(scratch);
  }

  static constexpr bool of_negatives(Scan kind) {
    return kind == Scan::negatives || kind == Scan::hardest_negative;
  }
  static constexpr bool of_sums(Scan kind) {
    return kind == Scan::negatives || kind == Scan::positives;
  }

  template <Scan kind, bool general>
  void scan(Scratch<T>& scratch) {
#pragma omp for schedule(dynamic, 1)
    for (int s = 0; s < grid_.super_tiles(); ++s) {
      w_.active[s] = 0;
      grid_.each_tile(s, [&](Tile t) {
        if (!concerns<kind>(t)) return;
        if (!w_.active[s]) clear_cells(s);
        w_.active[s] = 1;
        if (w_.both)
          scan_tile<kind, true, general>(t, scratch);
        else
          scan_tile<kind, false, general>(t, scratch);
      });
    }
#pragma omp for schedule(dynamic, 1)
    for (int b = 0; b < grid_.rows.blocks; ++b) finish_block<kind, false>(rows_, b, scratch);
    if (!w_.both || grid_.symmetric) return;
#pragma omp for schedule(dynamic, 1)
    for (int b = 0; b < grid_.columns.blocks; ++b) finish_block<kind, true>(columns_, b, scratch);
  }

  void clear_lists() {
    if (!w_.hardest.exist()) return;
#pragma omp for schedule(static)
    for (std::int64_t k = 0; k < rows_.axis.padded(); ++k) w_.hardest.clear(k);
  }

  template <Scan kind>
  bool concerns(Tile t) const {
    return of_negatives(kind) ? may_have_negatives(rows_, columns_, t)
                              : may_have_positives(rows_, columns_, t);
  }

  // Cells of the rows of one super-block against another.
  void clear_cells(int super_index) {
    const Tile s = grid_.super_tile(super_index);
    const Rows rows = rows_of(grid_.rows, s.row);
    w_.cells_of(s.column, rows.first).clear(rows.count);
    if (!w_.both || (grid_.symmetric && s.row == s.column)) return;
    const Rows columns = rows_of(grid_.columns, s.column);
    w_.cells_of_column(s.row, columns.first).clear(columns.count);
  }
  struct Rows {
    std::int64_t first;
    int count;
  };
  static Rows rows_of(const Axis& axis, int super) {
    const int length = axis.super * axis.block;
    const std::int64_t first = std::int64_t(super) * length, left = axis.padded() - first;
    return {first, int(left < length ? left : length)};
  }

  template <Scan kind, bool both, bool general>
  void scan_tile(Tile t, Scratch<T>& scratch) {
    TileState& state = w_.states[grid_.index(t)];
    const T* similarities = similarities_of<kind>(t, state, scratch);
    TileScan<T, both, general> scan;
    scan.form = form<kind>();
    scan.value = similarities;
    if (!of_negatives(kind) || !only_negatives(rows_, columns_, grid_, t)) {
      select_pairs<T, !of_negatives(kind)>(
          view(rows_, columns_, grid_, t, similarities, w_.loss.max_positive_similarity),
          scan.form.sign, scratch.masked);
      scan.value = scratch.masked;
    }
    const std::int64_t row = rows_.first(t.row), column = columns_.first(t.column);
    scan.stride = grid_.columns.block;
    scan.rows = rows_.axis.valid(t.row);
    scan.vectors = (columns_.axis.valid(t.column) + kLanes<T> - 1) / kLanes<T>;
    scan.row_bounds = bounds<kind>(rows_, row);
    scan.column_bounds = bounds<kind>(columns_, column);
    scan.same_offsets = of_negatives(kind) || !w_.loss.offsets_positives();
    scan.row = partial(scratch, 0, general);
    scan.column = partial(scratch, 4, general);

    scan.find_hardest();
    if constexpr (kind == Scan::hardest_negative)
      if (w_.hardest.exist()) scan.list_hardest(w_.hardest, row, column);
    typename TileScan<T, both, general>::Range range;
    if (of_sums(kind)) range = scan.kept_range();
    if (range.empty()) {
      scan.row.clear_sums(grid_.rows.block);
      if (both) scan.column.clear_sums(grid_.columns.block);
    } else {
      // Tiles with positives are needed whole by the scan of those.
      const bool keep = wants_weights(w_.problem) && kind == Scan::negatives &&
                        !may_have_positives(rows_, columns_, t);
      const int capacity = keep ? most_listed(grid_) : 0;
      const int kept = sum_kept<kind>(scan, range, t, scratch.pairs(), capacity);
      state.kept += kept;
      if (keep && kept) keep_for_gradient(state, kept, similarities, scratch);
    }
    merge(w_.cells_of(t.column / grid_.columns.super, row), scan.row, grid_.rows.block, scan.form);
    if (both)
      merge(w_.cells_of_column(t.row / grid_.rows.super, column), scan.column, grid_.columns.block,
            scan.form);
  }

  template <Scan kind, bool both, bool general>
  int sum_kept(const TileScan<T, both, general>& scan,
               const typename TileScan<T, both, general>::Range& range, Tile t, Pair<T>* pairs,
               int capacity) const {
    if constexpr (general) {
      if (w_.loss.ranked()) {
        const std::int64_t row = rows_.first(t.row), column = columns_.first(t.column);
        const RankedScan<T, both> ranked{
            scan, rows_.ranks.block_at(row), columns_.ranks.block_at(column),
            rows_.least_threshold + row, columns_.least_threshold + column};
        return of_negatives(kind) ? ranked.sum_negatives(pairs, capacity)
                                  : ranked.list_positives(w_.loss.margin, row, column);
      }
    }
    return scan.sum_kept(range, pairs, capacity);
  }

  static Cells<T> partial(const Scratch<T>& s, int k, bool general) {
    return {s.small(k), s.small(k + 1), s.small_codes(k + 2), general ? s.small(k + 3) : nullptr};
  }

  // A tile with positives is looked at three or four times: keep it, if there is room.
  template <Scan kind>
  const T* similarities_of(Tile t, TileState& state, Scratch<T>& scratch) {
    const bool first_look =
        kind == Scan::hardest_positive || !may_have_positives(rows_, columns_, t);
    if (first_look) state = TileState{};
    if (state.holds == TileState::Holds::similarities) return w_.stash.template at<T>(state.place);
    T* out = scratch.tile;
    if (kind == Scan::hardest_positive &&
        w_.stash.reserve(grid_.tile_size() * sizeof(T), state.place)) {
      state.holds = TileState::Holds::similarities;
      out = w_.stash.template at<T>(state.place);
    }
    w_.similarity(t, scratch, out);
    return out;
  }

  void keep_for_gradient(TileState& state, int kept, const T* similarities, Scratch<T>& scratch) {
    const bool list = kept <= most_listed(grid_);
    const std::int64_t bytes = list ? kept * sizeof(Pair<T>) : grid_.tile_size() * sizeof(T);
    if (!w_.stash.reserve(bytes, state.place)) return;
    state.holds = list ? TileState::Holds::pairs : TileState::Holds::similarities;
    const void* from = list ? static_cast<const void*>(scratch.pairs()) : similarities;
    std::memcpy(w_.stash.template at<std::byte>(state.place), from, bytes);
  }

  template <Scan kind>
  static Bounds<T> bounds(const Side<T>& side, std::int64_t at) {
    if (of_negatives(kind)) return {side.neg_above + at, side.neg_below + at, side.neg_offset + at};
    return {side.pos_above + at, side.pos_below + at, side.pos_offset + at};
  }
  // Hardest pairs are the greatest values of any form with sign -1.
  template <Scan kind>
  Form<T> form() const {
    if (of_negatives(kind)) return w_.loss.negative;
    Form<T> form = w_.loss.positive;
    if (kind == Scan::hardest_positive) form.sign = T(-1);
    return form;
  }

  template <Scan kind, bool of_columns>
  void finish_block(Side<T>& side, int b, Scratch<T>& scratch) {
    const Axis& own = of_columns ? grid_.columns : grid_.rows;
    const Axis& others = of_columns ? grid_.rows : grid_.columns;
    const std::int64_t first = side.first(b);
    const int super = b / own.super, block = side.axis.block;
    const Cells<T> total = partial(scratch, 0, w_.loss.general);
    total.clear(block);
    for (int s = 0; s < others.supers; ++s)
      if (w_.active[of_columns ? grid_.super_index(s, super) : grid_.super_index(super, s)])
        merge(total, of_columns ? w_.cells_of_column(s, first) : w_.cells_of(s, first), block,
              form<kind>());
    for (int r = 0; r < block; ++r) finish_row<kind>(side, first + r, total.at(r));
    if (w_.loss.ranked()) finish_ranks<kind>(side, first);
    // Rows past the count keep nothing and take no part in any range.
    for (std::int64_t k = first + side.axis.valid(b); k < first + block; ++k) mute(side, k);
  }

  template <Scan kind>
  void finish_row(Side<T>& side, std::int64_t k, const Cells<T>& total) {
    if constexpr (kind == Scan::hardest_positive) {
      const auto& known = w_.problem.known;
      side.hardest_positive[k] = known_of(side, known.hardest_positive, k, -*total.hardest);
      side.hardest_negative[k] = known_of(side, known.hardest_negative, k, -kInfinity<T>);
      set_negative_bounds(side, k, w_.loss);
      set_positive_bounds(side, k, w_.loss);
    } else if constexpr (kind == Scan::hardest_negative) {
      side.hardest_negative[k] = w_.hardest.exist() ? w_.hardest.least(k) : *total.hardest;
      set_negative_bounds(side, k, w_.loss);
      set_positive_bounds(side, k, w_.loss);
    } else if constexpr (kind == Scan::negatives) {
      const T earlier = side.ranks.passed ? side.neg_sum[k] : T(0);
      const auto& mining = w_.loss.mining;
      if (!hardest_known() && !mining.bounds_negatives_above() && !mining.hardest_negatives())
        side.hardest_negative[k] = *total.hardest;
      side.neg_kept[k] = *total.kept;
      side.neg_sum[k] =
          known_of(side, w_.problem.known.neg_sum, k, sum_of(w_.loss.negative, total) + earlier);
      set_positive_bounds(side, k, w_.loss);
    } else {
      side.pos_kept[k] = *total.kept;
      side.pos_sum[k] = sum_of(w_.loss.positive, total);
      if (!w_.loss.ranked()) side.moment[k] = total.moment ? *total.moment : T(0);
    }
  }

  template <Scan kind>
  void finish_ranks(Side<T>& side, std::int64_t first) {
    const RankBlock<T> ranks = side.ranks.block_at(first);
    for (int r = 0; r < side.axis.block; ++r) {
      const std::int64_t k = first + r;
      if (kind == Scan::positives && w_.problem.rank_capacity)
        side.least_threshold[k] = ranks.least(r);
      if (kind == Scan::negatives)
        side.moment[k] = (ranks.passed ? side.moment[k] : T(0)) + ranks.all_reached(r);
    }
  }

  bool hardest_known() const { return w_.problem.known.hardest_negative != nullptr; }
  // Of rows past the count nobody knows anything.
  static T known_of(const Side<T>& side, const void* array, std::int64_t k, T found) {
    if (!array || k >= side.axis.count) return found;
    return static_cast<const T*>(array)[side.order[k]];
  }

  static T sum_of(const Form<T>& of, const Cells<T>& total) {
    T sum = *total.sum;
    with_shape<T>(of, [&](auto form) {
      if constexpr (form.log_sum)
        sum = *total.kept > 0 ? form.log_of_sum(*total.hardest, sum, *total.kept) : -kInfinity<T>;
    });
    return sum;
  }

  Workspace<T>& w_;
  Side<T>& rows_;
  Side<T>& columns_;
  const Grid& grid_;
};

}  // namespace msk::MSK_ISA
