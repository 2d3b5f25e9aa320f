// Which pairs of a tile are positives, which negatives.
#pragma once

#include "side.h"

namespace msk::MSK_ISA {

template <typename T>
struct PairMask {
  Mask<T> positive, negative;
};

// A tile with the labels and ids of its samples, and its similarities, `stride` to a row.
template <typename T>
struct TileView {
  const T* similarity;
  int stride;
  int rows, columns;  // valid ones
  const Code<T>*row_label, *column_label;
  const Code<T>*row_id, *column_id;  // both null: no ids
  bool on_diagonal;                  // only columns right of the row are pairs
  T max_positive_similarity;

  int vectors() const { return (columns + kLanes<T> - 1) / kLanes<T>; }

  PairMask<T> pairs(int row, int vector, Vec<T> s) const {
    const int at = vector * kLanes<T>;
    const Mask<T> column = lane_numbers<T>() + Code<T>(at);
    Mask<T> pair = (column < Code<T>(columns)) & (column > Code<T>(before(row)));
    if (row_id) {
      const Mask<T> id = load_codes<T>(column_id + at);
      pair &= (id != row_id[row]) & (id != Code<T>(kIgnoredCode));
    }
    const Mask<T> same = load_codes<T>(column_label + at) == row_label[row];
    return {pair & same & (s < max_positive_similarity), pair & ~same};
  }

 private:
  // The last column before those that may be pairs of a row.
  int before(int row) const {
    if (row_id && row_id[row] == kIgnoredCode) return columns;
    return on_diagonal ? row : -1;
  }
};

template <typename T>
TileView<T> view(const Side<T>& rows, const Side<T>& columns, const Grid& grid, Tile t,
                 const T* similarity, T max_positive_similarity) {
  const std::int64_t i = rows.first(t.row), j = columns.first(t.column);
  return {similarity,
          grid.columns.block,
          rows.axis.valid(t.row),
          columns.axis.valid(t.column),
          rows.label + i,
          columns.label + j,
          rows.id ? rows.id + i : nullptr,
          rows.id ? columns.id + j : nullptr,
          grid.on_diagonal(t),
          max_positive_similarity};
}

// Every pair of the tile is a negative and no column is padding.
template <typename T>
bool only_negatives(const Side<T>& rows, const Side<T>& columns, const Grid& grid, Tile t) {
  return !rows.id && !may_have_positives(rows, columns, t) &&
         columns.axis.valid(t.column) == columns.axis.block && !grid.on_diagonal(t);
}

// out = S at negatives, or sign S at positives; -inf elsewhere. So one scan serves both kinds.
template <typename T, bool positives>
void select_pairs(const TileView<T>& tile, T sign, T* out) {
  for (int r = 0; r < tile.rows; ++r)
    for (int v = 0; v < tile.vectors(); ++v) {
      const std::int64_t at = std::int64_t(r) * tile.stride + v * kLanes<T>;
      const Vec<T> s = load(tile.similarity + at);
      const PairMask<T> pairs = tile.pairs(r, v, s);
      const Vec<T> value = positives ? sign * s : s;
      store(out + at,
            (positives ? pairs.positive : pairs.negative) ? value : broadcast(-kInfinity<T>));
    }
}

}  // namespace msk::MSK_ISA
