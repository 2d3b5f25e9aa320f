// Parts of the workspace that both paths use.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cuda/core/geometry.h"
#include "cuda/pairs/problem.h"

namespace msk::gpu {

inline std::int64_t scalar_bytes(const Problem& p) { return p.dtype == DType::float64 ? 8 : 4; }

inline std::int64_t input_bytes(const Problem& p) {
  return p.dtype == DType::float64 ? 8 : p.dtype == DType::float32 ? 4 : 2;
}

// The type of operands in memory: float32 embeddings become bfloat16 at precision "medium".
inline std::int64_t operand_bytes(const Problem& p) {
  if (p.dtype == DType::float64) return 8;
  return p.dtype == DType::float32 && p.precision != Precision::medium ? 4 : 2;
}

inline Tile tile_of(const Problem& p) {
  const Path path = p.by_tiles ? Path::tiled : p.is_small ? Path::small : Path::batch;
  return tile_of(path, int(operand_bytes(p)));
}
// A whole number of tiles, as TileShape::kPadding has it.
inline std::int64_t padded(const Problem& p, std::int64_t count) {
  const Tile tile = tile_of(p);
  return padded_to(std::max(tile.rows, tile.columns), count);
}

class Carver {
 public:
  explicit Carver(std::byte* at) : start_(at), at_(at) {}
  void* take(std::int64_t bytes) {
    std::byte* const found = at_;
    at_ += (bytes + 255) / 256 * 256;
    return found;
  }
  std::int64_t bytes() const { return at_ - start_; }

 private:
  std::byte *start_, *at_;
};

inline void carve_terms(const Problem& p, std::int64_t n, SideBuffers& buffers, Carver& carver) {
  const std::int64_t scalar = scalar_bytes(p);
  for (void** array : {&buffers.neg_offset, &buffers.pos_offset}) *array = carver.take(n * scalar);
  for (void** array : {&buffers.neg_threshold, &buffers.pos_threshold, &buffers.dloss})
    *array = carver.take(p.family ? 0 : n * scalar);
  for (void** array :
       {&buffers.neg_above, &buffers.neg_below, &buffers.pos_above, &buffers.pos_below,
        &buffers.neg_coefficient, &buffers.pos_coefficient, &buffers.pos_constant})
    *array = carver.take(p.family ? n * scalar : 0);
  if (!p.by_tiles) return;
  for (void** array : {&buffers.least_offset, &buffers.greatest_offset})
    *array = carver.take(n / tile_of(p).rows * scalar);
  buffers.poisoned = static_cast<std::int32_t*>(carver.take(sizeof(std::int32_t)));
}

inline void carve_side(const Problem& p, const SideInput& side, SideBuffers& buffers,
                       Carver& carver) {
  const std::int64_t n = padded(p, side.count), scalar = scalar_bytes(p);
  buffers.copy = carver.take(n * p.padded_depth * operand_bytes(p));
  for (void** array : {&buffers.scale, &buffers.residue, &buffers.inverse})
    *array = carver.take(n * scalar);
  carve_terms(p, n, buffers, carver);
}

inline void carve_ranks(Problem& p, Carver& carver) {
  p.passed = static_cast<std::int64_t*>(carver.take(sizeof(std::int64_t)));
  const std::int64_t n = padded(p, p.rows.count), listed = n * p.ranks_per_round;
  p.row_buffers.threshold = carver.take(listed * scalar_bytes(p));
  p.row_buffers.reached =
      static_cast<std::int32_t*>(carver.take(listed * std::int64_t(sizeof(std::int32_t))));
  p.row_buffers.least_threshold = carver.take(n * scalar_bytes(p));
}

inline void carve_sides(Problem& p, Carver& carver) {
  if (p.ranked) carve_ranks(p, carver);
  carve_side(p, p.rows, p.row_buffers, carver);
  if (!p.self) return carve_side(p, p.columns, p.column_buffers, carver);
  p.column_buffers = p.row_buffers;
  // A gradient may be requested with different terms of the two sides.
  if (p.job == Job::gradient) carve_terms(p, padded(p, p.rows.count), p.column_buffers, carver);
}

}  // namespace msk::gpu
