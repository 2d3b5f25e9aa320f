// What the module hands to a launch: addresses, sizes, options. No CUDA, no framework.
#pragma once

#include <cstddef>
#include <cstdint>

namespace msk::gpu {

enum class DType : int { float16, bfloat16, float32, float64 };
enum class Job : int { statistics, gradient, loss_and_gradient };
// How products of float32 embeddings are taken, as torch.get_float32_matmul_precision() names it.
enum class Precision : int { highest, high, medium };

// One side of the pairs. Element d of sample r is x[r * row_stride + d].
struct SideInput {
  const void* x;
  std::int64_t row_stride;
  std::int64_t count;
  const std::int64_t* labels;
  const std::int64_t* ids;  // null: no self pairs, save i = i in self mode
};

// What one side adds to a pair's weight, in the compute type; null when it adds nothing.
struct TermInput {
  const void *hardest_positive, *hardest_negative, *pos_lse, *neg_lse, *dloss;
};

struct Options {
  double alpha, beta, base;
  double epsilon;                  // +inf: keep every pair
  double max_positive_similarity;  // +inf: keep every positive
  bool normalize;
};

struct StatisticsOutput {
  void *hardest_positive, *hardest_negative, *pos_lse, *neg_lse;
  std::int64_t *pos_kept, *neg_kept;
};

// A side in the workspace. Rows and depth are padded to whole tiles; the padding is 0.
struct SideRoom {
  void* copy;        // (padded, depth) rows scaled by a power of two, in the operand type
  void* scale;       // unit row = scale * copy; NaN marks a row with a non-finite element
  void* residue;     // what rounding took from the scale, as a part of it
  void* inverse;     // 1 / norm of the input row, the norm floored at 1e-12
  void* projection;  // 1 where the norm is above the floor and rows are normalised, else 0
  // Of a pair with similarity s, when this side weighs it.
  void *neg_threshold, *pos_threshold, *neg_offset, *pos_offset, *dloss;
};

enum Terms : int { row_term = 1, column_term = 2 };

struct Problem {
  Job job;
  DType dtype;
  Precision precision;
  bool self;  // the rows are their own columns
  std::int64_t depth;
  SideInput rows, columns;
  Options options;
  TermInput row_term, column_term;  // Job::gradient only
  StatisticsOutput statistics;      // Job::statistics only
  void* row_loss;                   // Job::loss_and_gradient only: (rows.count), and
  std::int64_t* kept;               // pairs kept of either kind
  void* d_rows;                     // (rows.count, depth) in the compute type; null: not wanted
  void* d_columns;                  // (columns.count, depth); null: not wanted

  // The plan (plan.h).
  int blocks;     // more would have nothing to do
  int terms;      // which sides weigh a pair: Terms
  bool prepared;  // copies and terms are in the workspace
  std::int64_t padded_depth;
  std::int64_t panel;  // rows whose similarities are held at a time, a multiple of the tile
  int splits;          // parts of the depth of one similarity, summed in order
  SideRoom row_room, column_room;
  void* similarities;  // (splits, panel, padded columns)
  void* weights;       // (panel, padded columns), in the operand type
  void* unscale;       // (panel): true weight = unscale * weight
  void* dot;           // (panel): gradient of the unit row, times the unit row
};

}  // namespace msk::gpu
