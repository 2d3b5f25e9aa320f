// The three scans: hardest positives, negatives, positives. Each is all tiles, then a merge of each
// row's cells in a fixed order.
#pragma once

#include "workspace.h"

namespace msk::MSK_ISA {

enum class Scan { hardest_positive, negatives, positives };

template <typename T>
class Statistics {
 public:
  explicit Statistics(Workspace<T>& w)
      : w_(w), rows_(w.rows), columns_(w.columns()), grid_(w.grid) {}

  // Called by every thread of a parallel region.
  void run(Scratch<T>& scratch) {
    scan<Scan::hardest_positive>(scratch);
    scan<Scan::negatives>(scratch);
    scan<Scan::positives>(scratch);
  }

 private:
  template <Scan kind>
  void scan(Scratch<T>& scratch) {
#pragma omp for schedule(dynamic, 1)
    for (int s = 0; s < grid_.super_tiles(); ++s) {
      w_.active[s] = 0;
      grid_.each_tile(s, [&](Tile t) {
        if (!concerns<kind>(t)) return;
        if (!w_.active[s]) clear_cells(s);
        w_.active[s] = 1;
        if (grid_.symmetric)
          scan_tile<kind, true>(t, scratch);
        else
          scan_tile<kind, false>(t, scratch);
      });
    }
#pragma omp for schedule(dynamic, 1)
    for (int b = 0; b < grid_.rows.blocks; ++b) finish_block<kind>(b, scratch);
  }

  template <Scan kind>
  bool concerns(Tile t) const {
    return kind == Scan::negatives ? may_have_negatives(rows_, columns_, t)
                                   : may_have_positives(rows_, columns_, t);
  }

  // Cells of the rows of one super-block against another.
  void clear_cells(int super_index) {
    const Tile s = grid_.super_tile(super_index);
    clear_cells(s.row, s.column);
    if (grid_.symmetric && s.row != s.column) clear_cells(s.column, s.row);
  }
  void clear_cells(int rows, int columns) {
    const int length = grid_.rows.super * grid_.rows.block;
    const std::int64_t first = std::int64_t(rows) * length;
    const std::int64_t left = grid_.rows.padded() - first;
    w_.cells_of(columns, first).clear(int(left < length ? left : length));
  }

  template <Scan kind, bool both>
  void scan_tile(Tile t, Scratch<T>& scratch) {
    TileState& state = w_.states[grid_.index(t)];
    const T* similarities = similarities_of<kind>(t, state, scratch);
    TileScan<T, both> scan;
    scan.value = similarities;
    if (kind != Scan::negatives || !only_negatives(rows_, columns_, grid_, t)) {
      select_pairs<T, kind != Scan::negatives>(
          view(rows_, columns_, grid_, t, similarities, w_.loss.max_positive_similarity),
          scratch.masked);
      scan.value = scratch.masked;
    }
    const std::int64_t row = rows_.first(t.row), column = columns_.first(t.column);
    scan.stride = grid_.columns.block;
    scan.rows = rows_.axis.valid(t.row);
    scan.vectors = (columns_.axis.valid(t.column) + kLanes<T> - 1) / kLanes<T>;
    scan.row_threshold = threshold<kind>(rows_) + row;
    scan.column_threshold = threshold<kind>(columns_) + column;
    scan.scale = scale<kind>();
    scan.row = {scratch.small(0), scratch.small(1), scratch.small_codes(2)};
    scan.column = {scratch.small(3), scratch.small(4), scratch.small_codes(5)};

    scan.find_hardest();
    typename TileScan<T, both>::Range range;
    if (kind != Scan::hardest_positive) range = scan.kept_range();
    if (range.empty()) {
      scan.row.clear_sums(grid_.rows.block);
      if (both) scan.column.clear_sums(grid_.columns.block);
    } else {
      // Tiles with positives are needed whole by the scan of those.
      const bool keep = (w_.problem.d_rows || w_.problem.d_columns) && kind == Scan::negatives &&
                        !may_have_positives(rows_, columns_, t);
      const int capacity = keep ? most_listed(grid_) : 0;
      const int kept = scan.sum_kept(range, scratch.pairs(), capacity);
      state.kept += kept;
      if (keep) keep_for_gradient(state, kept, similarities, scratch);
    }
    merge(w_.cells_of(t.column / grid_.columns.super, row), scan.row, grid_.rows.block, scan.scale);
    if (both)
      merge(w_.cells_of(t.row / grid_.rows.super, column), scan.column, grid_.columns.block,
            scan.scale);
  }

  // A tile with positives is looked at three times: keep it, if there is room.
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
  static const T* threshold(const Side<T>& side) {
    return kind == Scan::negatives ? side.neg_threshold : side.pos_threshold;
  }
  template <Scan kind>
  T scale() const {
    return kind == Scan::negatives ? w_.loss.beta : w_.loss.alpha;
  }

  template <Scan kind>
  void finish_block(int b, Scratch<T>& scratch) {
    const std::int64_t first = rows_.first(b);
    const int super = b / grid_.rows.super;
    const Cells<T> total = {scratch.small(0), scratch.small(1), scratch.small_codes(2)};
    total.clear(grid_.rows.block);
    for (int s = 0; s < grid_.columns.supers; ++s)
      if (w_.active[grid_.super_index(super, s)])
        merge(total, w_.cells_of(s, first), grid_.rows.block, scale<kind>());
    for (int r = 0; r < grid_.rows.block; ++r) {
      const std::int64_t k = first + r;
      const T hardest = kind == Scan::negatives ? total.hardest[r] : -total.hardest[r];
      const bool any = total.kept[r] > 0;
      if constexpr (kind == Scan::hardest_positive) {
        rows_.hardest_positive[k] = hardest;
        rows_.neg_threshold[k] = w_.loss.negative_threshold(hardest);
      } else if constexpr (kind == Scan::negatives) {
        rows_.hardest_negative[k] = hardest;
        rows_.pos_threshold[k] = -w_.loss.positive_threshold(hardest);
        rows_.neg_kept[k] = total.kept[r];
        rows_.neg_lse[k] = any ? w_.loss.neg_lse(hardest, total.sum[r]) : -kInfinity<T>;
      } else {
        rows_.pos_kept[k] = total.kept[r];
        rows_.pos_lse[k] = any ? w_.loss.pos_lse(hardest, total.sum[r]) : -kInfinity<T>;
      }
    }
    // Rows past the count keep nothing and take no part in any range.
    for (std::int64_t k = first + rows_.axis.valid(b); k < first + grid_.rows.block; ++k)
      mute(rows_, k);
  }

  Workspace<T>& w_;
  Side<T>& rows_;
  Side<T>& columns_;
  const Grid& grid_;
};

}  // namespace msk::MSK_ISA
