// How the small path divides its work and its workspace.
#include <algorithm>

#include "cuda/core/geometry.h"
#include "cuda/host/plan.h"
#include "cuda/host/workspace.h"

namespace msk::gpu {

namespace {

// A part of the depth shorter than this costs more in partial sums than it wins in parallelism.
constexpr std::int64_t kLeastSteps = 2;

// Whether 16 bytes at a time lie where a copy can read them.
bool aligned(const SideInput& side, std::int64_t element) {
  return reinterpret_cast<std::uintptr_t>(side.x) % 16 == 0 && side.row_stride * element % 16 == 0;
}

}  // namespace

std::int64_t layout_small(Problem& p, std::byte* workspace) {
  const std::int64_t scalar = scalar_bytes(p), operand = operand_bytes(p);
  const Tile tile = tile_of(p);
  const std::int64_t n = padded(p, p.rows.count), m = padded(p, p.columns.count);
  p.panel = n;
  p.exchanged_panel = m;
  p.one_panel = true;
  p.small.direct =
      operand == input_bytes(p) && aligned(p.rows, operand) && aligned(p.columns, operand);
  p.small.gradient_of_row = 1;
  if (p.small.loss && p.small.reduction == Reduction::mean)
    p.small.gradient_of_row = 1.0 / double(std::max<std::int64_t>(p.rows.count, 1));
  const std::int64_t down = n / tile.rows, across = m / tile.columns;
  const std::int64_t tiles = p.self ? down * (down + 1) / 2 : down * across;
  const std::int64_t steps = divided(p.depth * operand, tile.stage_bytes);
  p.splits = int(std::clamp<std::int64_t>(kWantedBlocks / std::max<std::int64_t>(tiles, 1), 1,
                                          std::max<std::int64_t>(1, steps / kLeastSteps)));
  const std::int64_t gradient_tiles =
      std::max(p.d_rows ? down : 0, p.d_columns ? across : 0) * (p.padded_depth / tile.columns);
  // Rows go to blocks of their own as long as there are any.
  p.blocks = int(std::max({n, m, tiles * p.splits, gradient_tiles, std::int64_t(1)}));

  Carver carver(workspace);
  carve_sides(p, carver);
  const std::int64_t pairs = n * m;
  const bool learn = p.d_columns;
  p.similarities = carver.take(p.splits * pairs * scalar);
  p.small.similarities = learn ? carver.take(p.splits * pairs * scalar) : nullptr;
  p.weights = carver.take(p.d_rows ? pairs * operand : 0);
  p.small.weights = carver.take(learn ? pairs * operand : 0);
  p.inverse_weight_scales = carver.take(n * scalar);
  p.dot = carver.take(n * scalar);
  p.small.inverse_weight_scales = carver.take(learn ? m * scalar : 0);
  p.small.dot = carver.take(learn ? m * scalar : 0);
  p.small.uncommon_rows = static_cast<std::int32_t*>(carver.take(n * 4));
  p.small.uncommon_columns = static_cast<std::int32_t*>(carver.take(m * 4));
  if (p.small.loss) {
    p.row_loss = carver.take(n * scalar);
    p.kept = static_cast<std::int64_t*>(carver.take(n * 8));
  }
  return carver.bytes();
}

}  // namespace msk::gpu
