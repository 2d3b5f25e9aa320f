// The gradient takes its tiles in waves: first the weights of each, then their products, where
// every block of the result has one owner that adds its tiles in a fixed order.
#pragma once

#include "stash.h"

namespace msk::MSK_ISA {

constexpr std::int64_t kWaveTiles = 4096;
constexpr std::int64_t kWaveBuffers = 32;

template <typename T>
struct Wave {
  struct Entry {
    Tile tile;
    TileState* state;  // null: nothing is known of this tile
    T* weights;        // a whole tile of them, when pairs is null
    Pair<T>* pairs;
    std::int32_t listed;
  };
  // Tiles of the wave that add to one block.
  struct Touch {
    std::int32_t entry;
    std::int32_t transposed;
  };

  Entry* entries;
  int size = 0;
  T* buffers;  // whole tiles, for tiles that the stash does not hold
  int buffers_used = 0;
  Touch* touches;
  std::int32_t* first_touch;  // [targets + 2]: the last one is room to sort in
  int super_tile = 0;         // where the next wave starts
  std::int64_t skip = 0;      // tiles of it that are done

  Wave() = default;
  Wave(const Grid& grid, std::int64_t stash_bytes, Carver& carver) {
    const std::int64_t tiles = grid.tiles(), most = Wave::most(grid);
    const bool all_stashed = stash_bytes >= tiles * stash_size(grid);
    entries = carver.take<Entry>(most);
    touches = carver.take<Touch>(2 * most);
    first_touch = carver.take<std::int32_t>(targets(grid) + 2);
    const std::int64_t buffered = all_stashed ? 0 : most < kWaveBuffers ? most : kWaveBuffers;
    buffers = carver.take<T>(buffered * grid.tile_size());
  }

  // Entries.
  static std::int64_t most(const Grid& grid) {
    return grid.tiles() < kWaveTiles ? grid.tiles() : kWaveTiles;
  }
  // Of the stash, for a whole tile.
  static std::int64_t stash_size(const Grid& grid) {
    return (grid.tile_size() * std::int64_t(sizeof(T)) + 63) / 64 * 64;
  }
  // Blocks that receive a gradient: those of the rows, then those of the columns if they differ.
  static int targets(const Grid& grid) {
    return grid.rows.blocks + (grid.symmetric ? 0 : grid.columns.blocks);
  }

  void restart() { super_tile = 0, skip = 0; }

  // Collects the next tiles in which a pair is kept; serial.
  void collect(const Grid& grid, TileState* states) {
    size = buffers_used = 0;
    for (; super_tile < grid.super_tiles(); ++super_tile, skip = 0) {
      std::int64_t seen = 0;
      bool full = false;
      grid.each_tile(super_tile, [&](Tile t) {
        if (full || seen++ < skip) return;
        TileState* state = states ? &states[grid.index(t)] : nullptr;
        if (!state || state->kept) {
          const bool buffered = !state || state->holds == TileState::Holds::nothing;
          if (size == kWaveTiles || (buffered && buffers_used == kWaveBuffers)) {
            full = true;
            return;
          }
          T* buffer = buffered ? buffers + buffers_used++ * grid.tile_size() : nullptr;
          entries[size++] = {t, state, buffer, nullptr, 0};
        }
        ++skip;
      });
      if (full) break;
    }
    sort_touches(grid);
  }

 private:
  void sort_touches(const Grid& grid) {
    const int count = targets(grid);
    for (int b = 0; b < count + 2; ++b) first_touch[b] = 0;
    const auto each = [&](auto visit) {
      for (int e = 0; e < size; ++e) {
        visit(entries[e].tile.row, Touch{e, 0});
        visit(entries[e].tile.column + (grid.symmetric ? 0 : grid.rows.blocks), Touch{e, 1});
      }
    };
    each([&](int target, Touch) { ++first_touch[target + 2]; });
    for (int b = 2; b < count + 2; ++b) first_touch[b] += first_touch[b - 1];
    each([&](int target, Touch touch) { touches[first_touch[target + 1]++] = touch; });
  }
};

}  // namespace msk::MSK_ISA
