// Scalar mathematics of the Multi-Similarity loss (Wang et al., CVPR 2019, equations 11 to 15).
#pragma once

#include "form.h"

namespace msk {

template <typename T>
struct MultiSimilarity {
  static constexpr bool kOffsetsPositives = false, kNeedsMoment = false;  // see weighting.h
  T alpha, beta, base;
  T epsilon;                  // +inf keeps every pair
  T max_positive_similarity;  // +inf keeps every positive

  // A negative is kept if S is above this; without mining (epsilon = +inf) always.
  MSK_HOST_DEVICE T negative_threshold(T hardest_positive) const {
    return std::isinf(epsilon) ? -epsilon : hardest_positive - epsilon;
  }
  // A positive is kept if S is below this.
  MSK_HOST_DEVICE T positive_threshold(T hardest_negative) const {
    return std::isinf(epsilon) ? epsilon : hardest_negative + epsilon;
  }
  // log-sum-exps of kept pairs from sum exp(scale (S - extreme)), `extreme` the hardest kept pair.
  MSK_HOST_DEVICE T neg_lse(T hardest, T sum) const {
    return rounded_product(beta, hardest - base) + std::log(sum);
  }
  MSK_HOST_DEVICE T pos_lse(T hardest, T sum) const {
    return rounded_product(alpha, base - hardest) + std::log(sum);
  }
  // dl/dS of a kept pair of a row with that softplus of its log-sum-exp.
  MSK_HOST_DEVICE T neg_weight(T similarity, T offset) const {
    return std::exp(rounded_product(beta, similarity - base) - offset);
  }
  MSK_HOST_DEVICE T pos_weight(T similarity, T offset) const {
    return -std::exp(rounded_product(alpha, base - similarity) - offset);
  }
  MSK_HOST_DEVICE T row_loss(T pos_lse, T neg_lse) const {
    return softplus(pos_lse) / alpha + softplus(neg_lse) / beta;
  }

  MSK_HOST_DEVICE Form<T> negative() const { return {Shape::exponential, beta, base}; }
  MSK_HOST_DEVICE Form<T> positive() const {
    return {Shape::exponential, alpha, -base, T(0), T(-1)};
  }
  MSK_HOST_DEVICE RowTerm<T> finish(const RowSums<T>& sums) const {
    const T pos = softplus(sums.positive), neg = softplus(sums.negative);
    return {pos / alpha + neg / beta, {T(1), neg}, {T(1), pos}};
  }
};

}  // namespace msk
