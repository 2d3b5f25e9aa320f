// What the module hands to a kernel: pointers, sizes, options. No framework, no templates.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../call.h"
#include "../rules/rules.h"

namespace msk {

// One side of the pairs. x[r * row_stride + k] is the embedding of sample r.
struct SideInput {
  const void* x;
  std::int64_t row_stride;
  std::int64_t count;
  const std::int64_t* labels;
  const std::int64_t* ids;  // null: no self pairs, save i = i in self mode
};

// Of all candidates of an anchor, where these are but some: its hardest pairs, which bound what
// mining keeps, and what its negatives sum to, null where nobody needs it.
struct KnownInput {
  const void *hardest_positive, *hardest_negative, *neg_sum;
};

struct Problem {
  Job job;
  DType dtype;          // of the rows, which chooses the compute type
  DType columns_dtype;  // float64 beside float64 alone
  std::int64_t depth;
  int threads;
  SideInput rows;
  SideInput columns;
  bool self;       // the rows are their own columns
  bool two_sided;  // Job::loss_and_gradient only: columns, though others, are anchors as rows are
  Options options;
  Rules rules;
  TermInput row_term, column_term;  // Job::gradient only
  const void* dloss;                // Job::loss_and_gradient: of each row's loss; null: ones
  StatisticsOutput statistics;      // not of Job::gradient; nulls: not wanted
  KnownInput known;                 // Job::statistics only; nulls: these are all candidates
  void* row_loss;      // Job::loss_and_gradient only: (rows.count), then columns that are anchors,
  std::int64_t* kept;  // and pairs kept of either kind, or null
  void* total_loss;    // their sum times loss_scale, or null
  double loss_scale = 1;  // of the gradients too
  void* d_rows;           // (rows.count, depth) in the compute type; null: not wanted
  void* d_columns;        // (columns.count, depth); null: not wanted
  double* weight_sums;    // (4), see weight_sums.h, not of Job::statistics; null: not wanted
  std::byte* workspace;
  std::int64_t workspace_bytes;
  // Columns receive no gradient, and no sums of their own as anchors. Found when the workspace is
  // cut: of a gradient without elements the address may be null when the call runs.
  bool only_tiles_read_columns;
  std::int64_t rank_capacity;  // slots of a ranked loss, see ranks.h
  std::int64_t stash_bytes;    // of the workspace, for similarities kept between the phases
};

// Whether anything is wanted that follows from the weights of pairs.
inline bool wants_weights(const Problem& p) { return p.d_rows || p.d_columns || p.weight_sums; }

// The compute type of half inputs is float32.
inline bool computes_in_double(DType dtype) { return dtype == DType::float64; }

}  // namespace msk
