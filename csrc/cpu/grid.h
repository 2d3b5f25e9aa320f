// How the pairs are cut into tiles, and tiles into super-blocks. Nothing here depends on the number
// of threads: the order of every sum follows from the sizes alone.
#pragma once

#include "simd.h"

namespace msk::MSK_ISA {

// Samples in a block: a tile of similarities, its mask and its operands fit the L2 cache, and
// small batches still have several tiles.
constexpr int kLeastBlock = 48, kLongestBlock = 192;
inline int block_size(std::int64_t count) {
  return count <= 256 ? kLeastBlock : count <= 1024 ? 2 * kLeastBlock : kLongestBlock;
}

// A row has one cell of partial sums for each super-block of columns: at most this many.
constexpr int kSuperBlocks = 32;

// Super-tiles that are enough for many threads. By threads it cannot go: the order in which tiles
// come decides in which their sums of weights are added.
constexpr int kSuperTiles = 128;

struct Axis {
  std::int64_t count;
  int block, blocks;
  int super, supers;  // blocks in a super-block; super-blocks

  explicit Axis(std::int64_t n)
      : count(n), block(block_size(n)), blocks(int((n + block - 1) / block)) {
    cut(kSuperBlocks);
  }
  void cut(int most_supers) {
    super = (blocks + most_supers - 1) / most_supers;
    supers = super ? (blocks + super - 1) / super : 0;
  }

  std::int64_t padded() const { return std::int64_t(block) * blocks; }
  int valid(int b) const {
    const std::int64_t left = count - std::int64_t(b) * block;
    return left < block ? int(left) : block;
  }
};

struct Tile {
  int row, column;  // blocks
};

// Row blocks by column blocks; when symmetric only tiles on or above the diagonal exist.
struct Grid {
  Axis rows, columns;
  bool symmetric;

  // Where columns have no cells few super-blocks of rows are better: a super-tile reads a block of
  // columns once for all of its rows.
  Grid(std::int64_t n, std::int64_t m, bool self, bool column_cells)
      : rows(n), columns(m), symmetric(self) {
    if (!column_cells && columns.supers)
      rows.cut((kSuperTiles + columns.supers - 1) / columns.supers);
  }

  static std::int64_t triangle(std::int64_t n) { return n * (n + 1) / 2; }
  std::int64_t tiles() const {
    return symmetric ? triangle(rows.blocks) : std::int64_t(rows.blocks) * columns.blocks;
  }
  std::int64_t index(Tile t) const {
    return symmetric ? triangle(t.column) + t.row : std::int64_t(t.column) * rows.blocks + t.row;
  }
  bool on_diagonal(Tile t) const { return symmetric && t.row == t.column; }
  std::int64_t tile_size() const { return std::int64_t(rows.block) * columns.block; }

  // A super-tile is a super-block of rows by one of columns: the unit of parallel work, because
  // it alone writes its cells.
  int super_tiles() const {
    return symmetric ? int(triangle(rows.supers)) : rows.supers * columns.supers;
  }
  int super_index(int row, int column) const {
    return symmetric ? int(row < column ? triangle(column) + row : triangle(row) + column)
                     : column * rows.supers + row;
  }
  Tile super_tile(int index) const {
    if (!symmetric) return {index % rows.supers, index / rows.supers};
    int column = 0;
    while (triangle(column + 1) <= index) ++column;
    return {int(index - triangle(column)), column};
  }

  // Calls visit(tile) for each tile of a super-tile, column by column.
  template <typename Visit>
  void each_tile(int super_index, Visit visit) const {
    const Tile s = super_tile(super_index);
    for (int j = s.column * columns.super; j < (s.column + 1) * columns.super; ++j)
      for (int i = s.row * rows.super; i < (s.row + 1) * rows.super; ++i)
        if (j < columns.blocks && i < rows.blocks && (!symmetric || i <= j)) visit(Tile{i, j});
  }
};

}  // namespace msk::MSK_ISA
