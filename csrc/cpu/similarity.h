// One tile of S = X R', from cache-sized pieces.
#pragma once

#include "multiply.h"
#include "read_rows.h"
#include "scan.h"

namespace msk::MSK_ISA {

// Depth of a piece: kRows rows and kColumns columns of it stay in the L1 cache. Every piece sums
// from 0 (multiply.h): pieces of 256 are no faster, and err up to twice as much as these.
constexpr int kDepth = 128;

// What a thread needs for itself.
template <typename T>
struct Scratch {
  T* packed;  // a column block, kColumns columns side by side, in pieces of kDepth
  int packed_block = -1;
  T *tile, *masked;  // one tile each
  T* sums;           // row blocks by kChunk columns, see gradient.h
  T* values;         // small arrays, kSmall of them, one block long each
  T* room;           // for rows that their side does not hold: a block of a view, or one whole row

  static constexpr int kSmall = 8;
  static constexpr int kChunk = 192;
  // Row blocks whose sums a thread may keep at once, where columns are read in place.
  static constexpr int kMostGrouped = 16, kGroupedRows = 768;
  static int grouped(const Grid& grid) { return kGroupedRows / grid.rows.block; }
  static_assert(kGroupedRows / kLeastBlock <= kMostGrouped);
  static_assert(kChunk <= kViewedElements && kDepth <= kViewedElements);

  Scratch(const Grid& grid, const Side<T>& columns, std::int64_t depth, Carver& carver) {
    packed = carver.take<T>(grid.columns.block * depth);
    tile = carver.take<T>(grid.tile_size());
    masked = carver.take<T>(grid.tile_size());
    const int summed = columns.held ? kLongestBlock : grouped(grid) * grid.rows.block;
    sums = carver.take<T>(std::int64_t(summed) * kChunk);
    values = carver.take<T>(kSmall * kLongestBlock);
    const std::int64_t viewed = kLongestBlock * kViewedElements;
    room = carver.take<T>(columns.held ? 0 : viewed < columns.stride ? columns.stride : viewed);
  }
  T* sum_row(int r) const { return sums + r * kChunk; }
  T* small(int k) const { return values + k * kLongestBlock; }
  Code<T>* small_codes(int k) const { return reinterpret_cast<Code<T>*>(small(k)); }
  // Room for the most pairs that a tile may list; free until the gradient sums.
  Pair<T>* pairs() const { return reinterpret_cast<Pair<T>*>(sums); }
};

template <typename T>
void pack(const Side<T>& columns, int block, std::int64_t depth, T* packed, T* room) {
  for (std::int64_t k0 = 0; k0 < depth; k0 += kDepth) {
    const int piece = int(depth - k0 < kDepth ? depth - k0 : kDepth);
    for (int c0 = 0; c0 < columns.axis.block; c0 += kColumns<T>) {
      T* out = packed + k0 * columns.axis.block + std::int64_t(c0) * piece;
      const std::int64_t first = columns.first(block) + c0;
      const RowsView<T> rows = view_rows(columns, first, kColumns<T>, k0, piece, room);
      for (int k = 0; k < piece; ++k)
        for (int c = 0; c < kColumns<T>; ++c) *out++ = rows.x[c * rows.stride + k];
    }
  }
}

// Valid rows and columns of the tile, rounded up to whole register blocks; of a tile on the
// diagonal only blocks that reach the diagonal or lie right of it.
template <typename T, Sum of>
void sum_tile(const Side<T>& rows, const Side<T>& columns, const Grid& grid, Tile t,
              std::int64_t depth, Scratch<T>& scratch, T* out) {
  if (scratch.packed_block != t.column) {
    pack(columns, t.column, depth, scratch.packed, scratch.room);
    scratch.packed_block = t.column;
  }
  if (depth == 0) std::memset(out, 0, grid.tile_size() * sizeof(T));
  const int height = rows.axis.valid(t.row), width = columns.axis.valid(t.column);
  const int stride = grid.columns.block;
  for (std::int64_t k0 = 0; k0 < depth; k0 += kDepth) {
    const int piece = int(depth - k0 < kDepth ? depth - k0 : kDepth);
    for (int c = 0; c < width; c += kColumns<T>) {
      const int reach = c + kColumns<T>;
      multiply<T, of>(
          {rows.block(t.row) + k0, rows.stride, 1,
           scratch.packed + k0 * stride + std::int64_t(c) * piece, kColumns<T>, out + c, stride},
          grid.on_diagonal(t) && reach < height ? reach : height, kColumns<T>, piece, k0 > 0);
    }
  }
}

// From the sums of squared differences of a tile.
template <typename T>
void negate_distances(Distance distance, T* tile, std::int64_t size) {
  for (std::int64_t i = 0; i < size; i += kLanes<T>) {
    const Vec<T> square = load(tile + i);
    store(tile + i, -(distance == Distance::euclidean ? square_root<T>(square) : square));
  }
}

template <typename T>
void similarity(const Side<T>& rows, const Side<T>& columns, const Grid& grid, Tile t,
                std::int64_t depth, Distance distance, Scratch<T>& scratch, T* out) {
  if (distance == Distance::none)
    return sum_tile<T, Sum::products>(rows, columns, grid, t, depth, scratch, out);
  sum_tile<T, Sum::squared_differences>(rows, columns, grid, t, depth, scratch, out);
  negate_distances(distance, out, std::int64_t(rows.axis.valid(t.row)) * grid.columns.block);
}

// Norms of finite rows may still overflow a product: such similarities poison their samples and
// count as 0 from here on.
template <typename T>
void remove_overflow(const Side<T>& rows, const Side<T>& columns, const Grid& grid, Tile t,
                     bool both, T* tile) {
  for (int r = 0; r < rows.axis.valid(t.row); ++r)
    for (int c = grid.on_diagonal(t) ? r : 0; c < columns.axis.valid(t.column); ++c) {
      T& s = tile[std::int64_t(r) * grid.columns.block + c];
      if (std::isfinite(s)) continue;
      s = T(0);
      // Threads may write the same byte: always a 1.
      __atomic_store_n(&rows.poisoned[rows.first(t.row) + r], 1, __ATOMIC_RELAXED);
      if (both)
        __atomic_store_n(&columns.poisoned[columns.first(t.column) + c], 1, __ATOMIC_RELAXED);
    }
}

}  // namespace msk::MSK_ISA
