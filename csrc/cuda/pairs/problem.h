// What the module hands to a launch: addresses, sizes, options. No CUDA, no framework.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "call.h"
#include "rules/host_device.h"
#include "rules/multi_similarity.h"
#include "rules/rules.h"

namespace msk::gpu {

// How products of float32 embeddings are taken, as torch.get_float32_matmul_precision() names it.
enum class Precision : int { highest, high, medium };

// One side of the pairs. Element d of sample r is x[r * row_stride + d].
struct SideInput {
  const void* x;
  std::int64_t row_stride;
  std::int64_t count;
  const std::int64_t* labels;
  const std::int64_t* ids;    // null: no self pairs, save i = i in self mode
  const std::int64_t* order;  // row i is sample order[i], labels ascend, ids follow; null: as given

  MSK_HOST_DEVICE std::int64_t sample(std::int64_t i) const { return order ? order[i] : i; }
};

// The buffers of a side in the workspace. Rows and depth are padded to whole tiles; the padding is
// 0.
struct SideBuffers {
  void* copy;     // (padded, depth) rows scaled by a power of two, in the operand type
  void* scale;    // unit row = scale * copy; NaN marks a row with a non-finite element
  void* residue;  // what rounding took from the scale, as a part of it
  void* inverse;  // 1 / norm of the input row; 0 where the norm is under its floor
  // Of a pair, when this side weighs it: of the MS loss see Term, of a family member FamilyTerm.
  void *neg_offset, *pos_offset;
  void *neg_threshold, *pos_threshold, *dloss;  // of the MS loss alone
  // Of a family member alone.
  void *neg_above, *neg_below, *pos_above, *pos_below;
  void *neg_coefficient, *pos_coefficient, *pos_constant;
  // Of anchors of a ranked one besides (ranks.cuh), (ranks of a round, padded), and the least.
  void* threshold;
  std::int32_t* reached;
  void* least_threshold;
  // The tiled path only. Of rows:
  void *hardest_positive, *hardest_negative, *negative_sum;  // what the scans found so far
  std::int32_t* neg_kept;
  // Of tiles of rows:
  void *least_neg_threshold, *least_offset, *greatest_offset;  // of the negatives
  std::int32_t* poisoned;  // one flag: a row loss, or its incoming gradient, is NaN
};

constexpr int kMostOptions = 3;  // of a weighting rule
// Of the four numbers of WeightSums (weight_sums.cuh).
constexpr std::int64_t kWeightSumsBytes = 32;

enum Terms : int { row_term = 1, column_term = 2 };

// What becomes of the losses of rows.
enum class Reduction : int { sum, mean, mean_valid };

// The small path besides.
struct Small {
  bool direct;  // products read the embeddings where they are
  Reduction reduction;
  double gradient_of_row;  // incoming, of each row's loss
  void* loss;              // null: row losses are asked for; else the reduced one
  bool wide;               // in the compute type, not in the input's
  void* factor;            // mean_valid: of the gradients that are written, in the compute type
  // Of rows and columns: which are too large or too small to be multiplied as they are.
  std::int32_t *uncommon_rows, *uncommon_columns;
  // Of candidates that learn, their rows: see the plan of Problem.
  void *similarities, *weights, *inverse_weight_scales, *dot;
};

// The tiled path: what a launch does and where it leaves it. Sizes are in tiles.
struct Tiled {
  std::int64_t column_tiles_per_block;  // of the negative scan
  std::int64_t tiles_per_bound;  // of columns that share a bound of weights; divides the one above
  std::int64_t row_tiles_per_launch;  // of the negative scan
  std::int64_t parts;                 // blocks that share the positives of a tile of rows
  std::int64_t panel;                 // of rows whose weights are held at a time
  std::int64_t width;                 // of columns, of the wider side where both get gradients
  std::int64_t first, count;          // of rows of this launch
  std::int64_t first_listed;          // where in the lists this launch begins
  double skip_below;                  // a row may lose this part of the greatest weight of any row
  bool transposed;                    // the rows of this gradient are the columns of the scan
  // Of positives, (parts, padded rows): hardest ones, later sums.
  void* positives;
  std::int32_t* pos_kept;
  // Partial sums of a launch: (blocks of columns, row_tiles_per_launch * tile) of rows,
  // (row_tiles_per_launch, padded columns) of columns.
  void *row_hardest, *row_sum, *column_hardest, *column_sum;
  std::int32_t *row_kept, *column_kept;
  // (tiles of rows, bounds): log of the greatest sum of a row or column of the tiles.
  void* weight_bounds;
  std::int32_t *tiles, *counts;  // (panel, width) tiles that the gradient visits, (panel)
  void* weights;                 // (panel * tile, segment * tile), in the operand type
  void* inverse_weight_scales;   // float16 only, (segment, panel * tile): see Problem
  void* dots;         // (segment, panel * tile): parts of the unit row times its gradient
  void* dots_so_far;  // (2, panel * tile): of earlier segments; one is read, one written
  void* list_sums;    // (blocks of a segment, panel) WeightSums of a launch
};

struct Problem {
  Job job;
  DType dtype;
  Precision precision;
  bool self;      // the rows are their own columns
  bool by_tiles;  // sides are in label order; else one launch does everything
  bool is_small;  // that of the small path
  std::int64_t depth;
  SideInput rows, columns;
  Options options;
  Rules rules;
  // Of rules and options, the MS loss in both types: a kernel that converted them would do so again
  // for each pair.
  MultiSimilarity<float> loss_in_float;
  MultiSimilarity<double> loss_in_double;
  bool family;  // any rules, in one launch; else the MS loss with its own mining
  // Where options of the weighting rule learn (learned.cuh): their values, in the compute type.
  // Those of `rules` mean nothing then. Null: they are numbers.
  const void* option_values;
  int option_count;
  // Job::gradient, where they learn: what the weights of the row term, or of the column term alone,
  // add up to, (4) in the compute type; null: not wanted.
  void* weight_sums;
  const void* dloss;                // Job::loss_and_gradient: of each row's loss; null: ones
  bool ranked;                      // a family member that compares pairs of pairs: see ranks.cuh
  int ranks_per_round;              // positives of an anchor that go at once
  std::int64_t* passed;             // (1): of each class, in earlier rounds
  const std::int64_t* ordinals;     // (candidates): which of its class each is
  const std::int64_t* most_ranks;   // (1): candidates of the largest class
  TermInput row_term, column_term;  // Job::gradient only
  StatisticsOutput statistics;      // not of Job::gradient; null: not wanted
  void* row_loss;                   // Job::loss_and_gradient only: (rows.count), and
  std::int64_t* kept;               // pairs kept of either kind
  void* d_rows;                     // (rows.count, depth) in the compute type; null: not wanted
  void* d_columns;                  // (columns.count, depth); null: not wanted

  // The plan (plan.h).
  std::int64_t workspace_bytes;
  int blocks;  // more would have nothing to do
  int terms;   // which sides weigh a pair: Terms
  std::int64_t padded_depth;
  std::int64_t panel;  // rows whose similarities are held at a time, a multiple of the tile
  std::int64_t exchanged_panel;  // the same when the sides have changed places
  bool one_panel;                // holds all rows
  int splits;                    // parts of the depth of one similarity, summed in order
  SideBuffers row_buffers, column_buffers;
  void* similarities;           // (splits, panel, padded columns)
  void* weights;                // (panel, padded columns), in the operand type
  void* inverse_weight_scales;  // (panel): true weight = this * weight
  void* dot;                    // (panel): gradient of the unit row, times the unit row
  void* row_sums;  // WeightSums of each row, by tiles of each tile of rows; null: not wanted
  Tiled tiled;     // by_tiles only
  Small small;     // is_small only
};

// Candidates that learn own their gradient in turn: the sides change places.
inline Problem exchanged(const Problem& problem) {
  Problem other = problem;
  std::swap(other.rows, other.columns);
  std::swap(other.row_buffers, other.column_buffers);
  other.panel = problem.exchanged_panel;
  other.one_panel = other.rows.count <= other.panel;
  other.job = Job::gradient;
  other.terms = column_term;
  other.d_rows = problem.d_columns;
  other.d_columns = nullptr;
  other.tiled.transposed = true;
  if (problem.d_rows) other.row_sums = nullptr;
  return other;
}
// The other pass: weights are added up in one of the two, in this if it gives a gradient.
inline Problem as_given(const Problem& problem) {
  Problem given = problem;
  if (!problem.d_rows && problem.d_columns) given.row_sums = nullptr;
  return given;
}

// Whether statistics are written: all seven or none.
MSK_HOST_DEVICE inline bool writes_statistics(const Problem& problem) {
  return problem.statistics.neg_sum;
}

// Whether a pass over pairs of finished statistics is for anything.
MSK_HOST_DEVICE inline bool weighs(const Problem& problem) {
  return problem.d_rows || problem.row_sums;
}

// What the one launch does: the pairs as given, and where candidates learn with the sides
// exchanged.
struct Passes {
  Problem given, exchanged;
};

}  // namespace msk::gpu
