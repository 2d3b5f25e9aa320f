// How the tiled path divides its work and its workspace.
#include <algorithm>
#include <limits>

#include "cuda/core/geometry.h"
#include "cuda/host/plan.h"
#include "cuda/host/workspace.h"

namespace msk::gpu {

namespace {

// Blocks that keep a large GPU busy several times over; a constant, so that the order of sums does
// not depend on the GPU.
constexpr std::int64_t kManyBlocks = 1056;
constexpr std::int64_t kMostTilesPerBlock = 8;
// Bounds of weights that are kept: above N = 262,144 several tiles share one.
constexpr std::int64_t kMostBounds = std::int64_t(1) << 24;
// How many budgets weights and partial sums may take. A launch of one budget has 2.4 times the
// blocks that an H200 holds at once, and its multiprocessors wait for the last of them.
constexpr std::int64_t kBudgets = 4;

}  // namespace

std::int64_t layout_tiled(Problem& p, std::byte* workspace, std::int64_t budget) {
  Tiled& t = p.tiled;
  budget = std::min(budget, std::numeric_limits<std::int64_t>::max() / kBudgets) * kBudgets;
  const std::int64_t scalar = scalar_bytes(p), operand = operand_bytes(p);
  const std::int64_t n = padded(p, p.rows.count), m = padded(p, p.columns.count);
  const std::int64_t tile = tile_of(p).rows;  // and columns
  const std::int64_t row_tiles = n / tile, column_tiles = m / tile;
  const bool rows_own = p.d_rows || (p.weight_sums && !p.d_columns);
  const bool gradient = rows_own || p.d_columns, scan = p.job != Job::gradient;

  // Powers of two, so that a block takes whole bounds.
  t.tiles_per_bound = t.column_tiles_per_block = 1;
  while (t.tiles_per_bound < column_tiles &&
         row_tiles * divided(column_tiles, t.tiles_per_bound) > kMostBounds)
    t.tiles_per_bound *= 2;
  const std::int64_t work = row_tiles * column_tiles / (p.self ? 2 : 1);
  while (t.column_tiles_per_block < kMostTilesPerBlock &&
         t.column_tiles_per_block * 2 * kManyBlocks <= work)
    t.column_tiles_per_block *= 2;
  t.column_tiles_per_block = std::max(t.column_tiles_per_block, t.tiles_per_bound);
  t.parts = std::clamp<std::int64_t>(kWantedBlocks / std::max<std::int64_t>(row_tiles, 1), 1,
                                     std::max<std::int64_t>(column_tiles, 1));

  const std::int64_t column_blocks = divided(column_tiles, t.column_tiles_per_block);
  const std::int64_t cell = 2 * scalar + 4;
  const std::int64_t partial_bytes = cell * (column_blocks * tile + (p.self ? m : 0));
  t.row_tiles_per_launch = std::clamp<std::int64_t>(
      budget / std::max<std::int64_t>(partial_bytes, 1), 1, std::max<std::int64_t>(row_tiles, 1));
  const std::int64_t height = std::max(rows_own ? row_tiles : 0, p.d_columns ? column_tiles : 0);
  t.width = std::max(rows_own ? column_tiles : 0, p.d_columns ? row_tiles : 0);
  const std::int64_t scale = p.dtype == DType::float16 ? scalar : 0;
  const std::int64_t listed_bytes =
      t.width * 4 + tile * (kSegment * (tile * operand + scalar + scale) + 2 * scalar);
  const std::int64_t fitting = std::clamp<std::int64_t>(
      budget / std::max<std::int64_t>(listed_bytes, 1), 1, std::max<std::int64_t>(height, 1));
  const std::int64_t panels = divided(std::max<std::int64_t>(height, 1), fitting);
  t.panel = divided(std::max<std::int64_t>(height, 1), panels);  // of like height

  Carver carver(workspace);
  carve_sides(p, carver);
  for (void** array : {&p.row_buffers.hardest_positive, &p.row_buffers.hardest_negative,
                       &p.row_buffers.negative_sum})
    *array = carver.take(scan ? n * scalar : 0);
  p.row_buffers.least_neg_threshold = carver.take(scan ? row_tiles * scalar : 0);
  p.row_buffers.neg_kept = static_cast<std::int32_t*>(carver.take(scan ? n * 4 : 0));
  if (p.self && p.job != Job::gradient) p.column_buffers = p.row_buffers;
  t.positives = carver.take(scan ? t.parts * n * scalar : 0);
  t.pos_kept = static_cast<std::int32_t*>(carver.take(scan ? t.parts * n * 4 : 0));
  // Bounds say which tiles weigh little for incoming gradients of 1; of others every tile counts.
  t.weight_bounds = nullptr;
  if (scan && gradient && !p.dloss)
    t.weight_bounds = carver.take(row_tiles * divided(column_tiles, t.tiles_per_bound) * scalar);

  p.row_sums = nullptr;
  if (p.weight_sums) p.row_sums = carver.take(std::max(row_tiles, column_tiles) * kWeightSumsBytes);

  // Partial sums are done with when the first list is made.
  Carver partials = carver;
  const std::int64_t row_cells = scan ? column_blocks * t.row_tiles_per_launch * tile : 0;
  const std::int64_t column_cells = scan && p.self ? t.row_tiles_per_launch * m : 0;
  t.row_hardest = partials.take(row_cells * scalar);
  t.row_sum = partials.take(row_cells * scalar);
  t.row_kept = static_cast<std::int32_t*>(partials.take(row_cells * 4));
  t.column_hardest = partials.take(column_cells * scalar);
  t.column_sum = partials.take(column_cells * scalar);
  t.column_kept = static_cast<std::int32_t*>(partials.take(column_cells * 4));
  Carver lists = carver;
  const std::int64_t panel = gradient ? t.panel : 0;
  t.tiles = static_cast<std::int32_t*>(lists.take(panel * t.width * 4));
  t.counts = static_cast<std::int32_t*>(lists.take(panel * 4));
  t.weights = lists.take(panel * kSegment * tile * tile * operand);
  t.inverse_weight_scales = lists.take(panel * kSegment * tile * scale);
  t.dots = lists.take(panel * kSegment * tile * scalar);
  t.dots_so_far = lists.take(2 * panel * tile * scalar);
  const std::int64_t list_blocks = p.weight_sums ? kSegment / kListedPerBlock : 0;
  t.list_sums = lists.take(panel * list_blocks * kWeightSumsBytes);
  return std::max(partials.bytes(), lists.bytes());
}

}  // namespace msk::gpu
