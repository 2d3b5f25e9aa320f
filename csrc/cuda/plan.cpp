#include "cuda/plan.h"

#include <algorithm>
#include <limits>

#include "cuda/geometry.h"

namespace msk::gpu {

namespace {

// Enough blocks for any GPU of today; a constant, so that bits do not depend on the GPU's size.
constexpr std::int64_t kWantedBlocks = 264;
// A part of the depth shorter than this costs more in partial sums than it wins in parallelism.
constexpr std::int64_t kLeastSteps = 2;

// The type of operands in memory: float32 embeddings become bfloat16 at precision "medium".
std::int64_t operand_bytes(const Problem& p) {
  if (p.dtype == DType::float64) return 8;
  return p.dtype == DType::float32 && p.precision != Precision::medium ? 4 : 2;
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

void carve_terms(SideRoom& room, std::int64_t bytes, Carver& carver) {
  for (void** array :
       {&room.neg_threshold, &room.pos_threshold, &room.neg_offset, &room.pos_offset, &room.dloss})
    *array = carver.take(bytes);
}

void carve(Problem& p, const SideInput& side, SideRoom& room, Carver& carver) {
  const std::int64_t n = padded(side.count), scalar = p.dtype == DType::float64 ? 8 : 4;
  room.copy = carver.take(n * p.padded_depth * operand_bytes(p));
  for (void** array : {&room.scale, &room.residue, &room.inverse, &room.projection})
    *array = carver.take(n * scalar);
  carve_terms(room, n * scalar, carver);
}

std::int64_t layout(Problem& p, std::byte* workspace, std::int64_t budget) {
  const std::int64_t scalar = p.dtype == DType::float64 ? 8 : 4, operand = operand_bytes(p);
  if (p.self) p.columns = p.rows;
  p.padded_depth = padded(p.depth);
  const std::int64_t n = padded(p.rows.count), m = padded(p.columns.count);
  // Symmetric in both sides: a pair has the same similarity whichever side owns the pass.
  const std::int64_t tiles = std::max<std::int64_t>(1, (n / kTile) * (m / kTile));
  const std::int64_t steps = p.padded_depth * operand / kStepBytes;
  const std::int64_t useful = std::max<std::int64_t>(1, steps / kLeastSteps);
  const std::int64_t drawn = p.self ? (tiles + n / kTile) / 2 : tiles;
  p.splits =
      int(std::clamp<std::int64_t>(kWantedBlocks / std::max<std::int64_t>(drawn, 1), 1, useful));
  const std::int64_t height = std::max(n, p.d_columns ? m : 0);
  const std::int64_t width = std::max(m, p.d_columns ? n : 0);
  const std::int64_t row_bytes = width * (scalar * p.splits + operand);
  const std::int64_t fitting = row_bytes ? budget / row_bytes / kTile * kTile : height;
  p.panel = std::clamp<std::int64_t>(fitting, kTile, std::max<std::int64_t>(height, kTile));
  const std::int64_t similarity_items = std::max(n, m) / kTile * (width / kTile) * p.splits;
  const std::int64_t items = std::max({height, similarity_items, std::int64_t(1)});
  p.blocks = int(std::min<std::int64_t>(items, std::numeric_limits<int>::max()));

  p.terms = row_term | (p.self ? column_term : 0);
  if (p.job == Job::gradient)
    p.terms = (p.row_term.dloss ? row_term : 0) | (p.column_term.dloss ? column_term : 0);
  p.prepared = false;

  Carver carver(workspace);
  carve(p, p.rows, p.row_room, carver);
  if (p.self) {
    p.column_room = p.row_room;
    // A gradient may be asked with different terms of the two sides.
    if (p.job == Job::gradient) carve_terms(p.column_room, n * scalar, carver);
  } else {
    carve(p, p.columns, p.column_room, carver);
  }
  p.similarities = carver.take(p.splits * p.panel * width * scalar);
  const bool gradient = p.job != Job::statistics;
  p.weights = carver.take(gradient ? p.panel * width * operand : 0);
  p.unscale = carver.take(p.panel * scalar);
  p.dot = carver.take(p.panel * scalar);
  return carver.bytes();
}

}  // namespace

std::int64_t plan(Problem& problem, std::int64_t budget) {
  return layout(problem, nullptr, budget);
}

void place(Problem& problem, std::byte* workspace, std::int64_t budget) {
  layout(problem, workspace, budget);
}

}  // namespace msk::gpu
