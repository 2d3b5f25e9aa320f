// Everything a call works on, cut from one block of memory.
#pragma once

#include <optional>

#include "hardest_lists.h"
#include "similarity.h"
#include "wave.h"
#include "weight_sums.h"

namespace msk::MSK_ISA {

template <typename T>
struct Workspace {
  const Problem& problem;
  PairLoss<T> loss;
  std::int64_t depth;
  Grid grid;
  Carver carver;
  Side<T> rows;
  std::optional<Side<T>> own_columns;  // absent in self mode
  bool both;                // columns are anchors too: those of self mode, or of their own
  Cells<T> cells;           // [super-block of columns][rows]
  Cells<T> column_cells;    // [super-block of rows][columns], of two sides
  HardestLists<T> hardest;  // of the rows' negatives
  std::uint8_t* active;     // super-tiles whose cells the latest scan has written
  TileState* states;        // [tiles]; absent when only the gradient is asked for
  Wave<T> wave;
  WeightTotals* totals;      // [entries of a wave]; absent when nobody wants their sum
  std::int64_t bookkeeping;  // bytes of all from `cells` on
  std::byte* scratch_block;
  std::int64_t scratch_bytes;
  Stash stash;
  bool may_overflow = false;

  // With a null workspace it only measures: see carver.used().
  explicit Workspace(const Problem& p)
      : problem(p),
        loss(p.rules, p.options.max_positive_similarity),
        depth(p.depth),
        grid(p.rows.count, p.self ? p.rows.count : p.columns.count, p.self,
             !p.only_tiles_read_columns),
        carver(p.workspace),
        rows(p.rows.count, source(p, p.rows, p.dtype), depth, true, p.rows.ids != nullptr,
             int(p.rank_capacity), carver) {
    if (!p.self)
      own_columns.emplace(p.columns.count, source(p, p.columns, p.columns_dtype), depth,
                          !p.only_tiles_read_columns, p.rows.ids != nullptr, 0, carver);
    const std::int64_t before = carver.used();
    both = p.self || p.two_sided;
    if (p.job != Job::gradient) cells = take_cells(grid.columns.supers * grid.rows.padded());
    if (p.two_sided) column_cells = take_cells(grid.rows.supers * grid.columns.padded());
    if (p.job != Job::gradient)
      hardest = {rows.axis.padded(), loss.mining.hardest_negatives(), carver};
    active = carver.take<std::uint8_t>(grid.super_tiles());
    states = carver.take<TileState>(p.job == Job::gradient ? 0 : grid.tiles());
    if (p.job != Job::statistics) wave = Wave<T>(grid, p.stash_bytes, carver);
    totals = carver.take<WeightTotals>(p.weight_sums ? Wave<T>::most(grid) : 0);
    bookkeeping = carver.used() - before;
    Carver one_scratch(nullptr);
    Scratch<T>(grid, columns(), depth, one_scratch);
    scratch_bytes = one_scratch.used();
    scratch_block = carver.take<std::byte>(scratch_bytes * p.threads);
    stash.open(carver.take<std::byte>(p.stash_bytes), p.stash_bytes);
  }
  Workspace(const Workspace&) = delete;

  Side<T>& columns() { return own_columns ? *own_columns : rows; }
  Scratch<T> scratch(int thread) {
    Carver own(scratch_block + thread * scratch_bytes);
    return Scratch<T>(grid, columns(), depth, own);
  }
  void similarity(Tile t, Scratch<T>& scratch, T* out) {
    MSK_ISA::similarity(rows, columns(), grid, t, depth, problem.options.distance, scratch, out);
    if (may_overflow) remove_overflow(rows, columns(), grid, t, both, out);
  }
  Cells<T> cells_of(int super, std::int64_t row) const {
    return cells.at(super * grid.rows.padded() + row);
  }
  Cells<T> cells_of_column(int super, std::int64_t column) const {
    if (grid.symmetric) return cells_of(super, column);
    return column_cells.at(super * grid.columns.padded() + column);
  }

 private:
  static RowSource source(const Problem& p, const SideInput& side, DType dtype) {
    return {side.x, side.row_stride, dtype, p.options.normalize};
  }
  Cells<T> take_cells(std::int64_t count) {
    return {carver.take<T>(count), carver.take<T>(count), carver.take<Code<T>>(count),
            loss.general ? carver.take<T>(count) : nullptr};
  }
};

}  // namespace msk::MSK_ISA
