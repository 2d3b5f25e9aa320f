// What a call of either module says: types of numbers, the job, options, statistics in and out.
#pragma once

#include <cstdint>

namespace msk {

enum class DType : int { float16, bfloat16, float32, float64 };
// A row of smaller norm has no direction: it is divided by this, and its gradient is 0.
constexpr double kNormFloor = 1e-12;
// The id of a sample that is in no pair, whatever the other's is.
constexpr std::int64_t kIgnored = INT64_MIN;

// What a similarity is: the product of two rows, or less their distance or its square.
enum class Distance : int { none, euclidean, squared_euclidean, count };

enum class Job : int { statistics, gradient, loss_and_gradient };

// Statistics of a side's rows, in the compute type, and the gradient of their losses: what the side
// adds to a pair's weight; all null when it adds nothing.
struct TermInput {
  const void *hardest_positive, *hardest_negative, *pos_sum, *neg_sum;
  const std::int64_t *pos_kept, *neg_kept;
  const void *pos_moment, *dloss;
};

// What all rules share.
struct Options {
  double max_positive_similarity;  // +inf: keep every positive
  bool normalize;
  Distance distance;
};

struct StatisticsOutput {
  void *hardest_positive, *hardest_negative, *pos_sum, *neg_sum;
  std::int64_t *pos_kept, *neg_kept;
  void* pos_moment;
};

}  // namespace msk
