// How the tiled path divides its work and its workspace.
#include <algorithm>

#include "cuda/core/geometry.h"
#include "cuda/host/plan.h"
#include "cuda/host/workspace.h"

namespace msk::gpu {

namespace {

// Blocks that keep a large GPU busy several times over; a constant, so that the order of sums does
// not depend on the GPU.
constexpr std::int64_t kManyBlocks = 1056;
constexpr std::int64_t kLongestRun = 8;
// Bounds of mass that are kept: above N = 262,144 several tiles share one.
constexpr std::int64_t kMostMasses = std::int64_t(1) << 24;

}  // namespace

std::int64_t layout_tiled(Problem& p, std::byte* workspace, std::int64_t budget) {
  Tiled& t = p.tiled;
  const std::int64_t scalar = scalar_bytes(p), operand = operand_bytes(p);
  const std::int64_t n = padded(p, p.rows.count), m = padded(p, p.columns.count);
  const std::int64_t tile = tile_of(p).rows;  // and columns
  const std::int64_t row_tiles = n / tile, column_tiles = m / tile;
  const bool gradient = p.d_rows || p.d_columns, scan = p.job != Job::gradient;

  // Powers of two, so that a run is a whole number of spans.
  t.span = t.run = 1;
  while (t.span < column_tiles && row_tiles * divided(column_tiles, t.span) > kMostMasses)
    t.span *= 2;
  const std::int64_t work = row_tiles * column_tiles / (p.self ? 2 : 1);
  while (t.run < kLongestRun && t.run * 2 * kManyBlocks <= work) t.run *= 2;
  t.run = std::max(t.run, t.span);
  t.parts = std::clamp<std::int64_t>(kWantedBlocks / std::max<std::int64_t>(row_tiles, 1), 1,
                                     std::max<std::int64_t>(column_tiles, 1));

  const std::int64_t runs = divided(column_tiles, t.run), cell = 2 * scalar + 4;
  const std::int64_t partial_bytes = cell * (runs * tile + (p.self ? m : 0));
  t.chunk = std::clamp<std::int64_t>(budget / std::max<std::int64_t>(partial_bytes, 1), 1,
                                     std::max<std::int64_t>(row_tiles, 1));
  const std::int64_t height = std::max(p.d_rows ? row_tiles : 0, p.d_columns ? column_tiles : 0);
  t.width = std::max(p.d_rows ? column_tiles : 0, p.d_columns ? row_tiles : 0);
  const std::int64_t lift = p.dtype == DType::float16 ? scalar : 0;
  const std::int64_t listed_bytes =
      t.width * 4 + tile * (kSegment * (tile * operand + scalar + lift) + 2 * scalar);
  t.panel = std::clamp<std::int64_t>(budget / std::max<std::int64_t>(listed_bytes, 1), 1,
                                     std::max<std::int64_t>(height, 1));

  Carver carver(workspace);
  carve_sides(p, carver);
  for (void** array :
       {&p.row_room.hardest_positive, &p.row_room.hardest_negative, &p.row_room.negative_sum})
    *array = carver.take(scan ? n * scalar : 0);
  p.row_room.least_threshold = carver.take(scan ? row_tiles * scalar : 0);
  p.row_room.neg_kept = static_cast<std::int32_t*>(carver.take(scan ? n * 4 : 0));
  if (p.self && p.job != Job::gradient) p.column_room = p.row_room;
  t.positives = carver.take(scan ? t.parts * n * scalar : 0);
  t.pos_kept = static_cast<std::int32_t*>(carver.take(scan ? t.parts * n * 4 : 0));
  t.mass = nullptr;
  if (scan && gradient) t.mass = carver.take(row_tiles * divided(column_tiles, t.span) * scalar);

  // Partial sums are done with when the first list is made.
  Carver partials = carver;
  const std::int64_t row_cells = scan ? runs * t.chunk * tile : 0;
  const std::int64_t column_cells = scan && p.self ? t.chunk * m : 0;
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
  t.unlifts = lists.take(panel * kSegment * tile * lift);
  t.dots = lists.take(panel * kSegment * tile * scalar);
  t.dots_so_far = lists.take(2 * panel * tile * scalar);
  return std::max(partials.bytes(), lists.bytes());
}

}  // namespace msk::gpu
