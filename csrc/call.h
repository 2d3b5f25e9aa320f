// What a call of either module says: types of numbers, the job, options, statistics in and out.
#pragma once

#include <cstdint>

namespace msk {

enum class DType : int { float16, bfloat16, float32, float64 };
// A row of smaller norm has no direction: it is divided by this, and its gradient is 0.
constexpr double kNormFloor = 1e-12;

enum class Job : int { statistics, gradient, loss_and_gradient };

// What one side adds to a pair's weight, in the compute type; all null when it adds nothing.
struct TermInput {
  const void *hardest_positive, *hardest_negative, *pos_lse, *neg_lse, *dloss;
};

struct Options {
  double alpha, beta, base;
  double epsilon;                  // +inf: keep every pair; else in the range of the compute type
  double max_positive_similarity;  // +inf: keep every positive
  bool normalize;
};

struct StatisticsOutput {
  void *hardest_positive, *hardest_negative, *pos_lse, *neg_lse;
  std::int64_t *pos_kept, *neg_kept;
};

}  // namespace msk
