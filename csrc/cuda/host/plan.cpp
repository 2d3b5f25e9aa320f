#include "cuda/host/plan.h"

#include <algorithm>
#include <limits>

#include "cuda/core/geometry.h"
#include "cuda/host/workspace.h"

namespace msk::gpu {

namespace {

// A part of the depth shorter than this costs more in partial sums than it wins in parallelism.
constexpr std::int64_t kLeastSteps = 2;

std::int64_t layout(Problem& p, std::byte* workspace, std::int64_t budget) {
  const std::int64_t scalar = scalar_bytes(p), operand = operand_bytes(p);
  const Tile tile = tile_of(p);
  const std::int64_t tile_pairs = std::int64_t(tile.rows) * tile.columns;
  const std::int64_t n = padded(p, p.rows.count), m = padded(p, p.columns.count);
  // Symmetric in both sides: a pair has the same similarity whichever side owns the pass.
  const std::int64_t tiles = std::max<std::int64_t>(1, n * m / tile_pairs);
  const std::int64_t steps = p.padded_depth * operand / tile.stage_bytes;
  const std::int64_t useful = std::max<std::int64_t>(1, steps / kLeastSteps);
  // A square tile above the diagonal serves the one below, see similarities().
  const bool mirrored = p.self && tile.rows == tile.columns;
  const std::int64_t drawn = mirrored ? (tiles + n / tile.rows) / 2 : tiles;
  p.splits =
      int(std::clamp<std::int64_t>(kWantedBlocks / std::max<std::int64_t>(drawn, 1), 1, useful));
  // A panel of the rows of either side whose pairs fit the budget, one tile of rows at least.
  const std::int64_t least = padded(p, 1);
  const auto panel = [&](std::int64_t height, std::int64_t width) {
    const std::int64_t row_bytes = width * (scalar * p.splits + operand);
    const std::int64_t fitting = row_bytes ? budget / row_bytes / least * least : height;
    return std::clamp<std::int64_t>(fitting, least, std::max<std::int64_t>(height, least));
  };
  p.panel = panel(n, m);
  p.one_panel = p.rows.count <= p.panel;
  p.exchanged_panel = p.d_columns ? panel(m, n) : 0;
  const std::int64_t rows = std::max(p.panel, p.exchanged_panel);
  const std::int64_t pairs = std::max(p.panel * m, p.exchanged_panel * n);
  const std::int64_t similarity_items = divided(pairs, tile_pairs) * p.splits;
  const std::int64_t gradient_items = rows * p.padded_depth / tile_pairs;
  const std::int64_t items = std::max({n, m, similarity_items, gradient_items, std::int64_t(1)});
  p.blocks = int(std::min<std::int64_t>(items, std::numeric_limits<int>::max()));

  Carver carver(workspace);
  carve_sides(p, carver);
  p.similarities = carver.take(p.splits * pairs * scalar);
  const bool gradient = p.job != Job::statistics;
  p.weights = carver.take(gradient ? pairs * operand : 0);
  p.inverse_weight_scales = carver.take(rows * scalar);
  p.dot = carver.take(rows * scalar);
  p.row_sums = nullptr;
  if (p.weight_sums) p.row_sums = carver.take(std::max(n, m) * kWeightSumsBytes);
  return carver.bytes();
}

template <typename T>
MultiSimilarity<T> loss_in(const Problem& p) {
  const double* const options = p.rules.weighting_options;
  const bool mined = p.rules.mining == MiningRule::multi_similarity;
  return {T(options[0]), T(options[1]), T(options[2]),
          mined ? T(p.rules.mining_options[0]) : kInfinity<T>,
          T(p.options.max_positive_similarity)};
}

// What both paths need to know.
void begin(Problem& p) {
  if (p.self) p.columns = p.rows;
  p.padded_depth = padded(p, p.depth);
  p.terms = row_term | (p.self ? column_term : 0);
  if (p.job == Job::gradient)
    p.terms = (p.row_term.dloss ? row_term : 0) | (p.column_term.dloss ? column_term : 0);
  p.family = p.family || p.is_small || (p.option_values && !p.by_tiles);
  p.loss_in_float = loss_in<float>(p);
  p.loss_in_double = loss_in<double>(p);
  p.ranked = p.family && p.rules.weighting == WeightingRule::triplet;
  p.ranks_per_round = int(std::min<std::int64_t>(p.columns.count, kRanksPerRound));
}

}  // namespace

std::int64_t plan(Problem& problem, std::int64_t budget) {
  place(problem, nullptr, budget);
  return problem.workspace_bytes;
}

void place(Problem& problem, std::byte* workspace, std::int64_t budget) {
  begin(problem);
  problem.workspace_bytes = problem.by_tiles   ? layout_tiled(problem, workspace, budget)
                            : problem.is_small ? layout_small(problem, workspace)
                                               : layout(problem, workspace, budget);
}

}  // namespace msk::gpu
