// What is known of the negatives of a row after some of them.
#pragma once

#include "cuda/tiled/similarity_tile.cuh"

namespace msk::gpu {

// The sum of exp(beta (S - hardest)) over kept negatives, `hardest` the greatest of all seen: it is
// kept if any is, so no exponent is above 0. NaN once a similarity was not finite.
template <typename T>
struct NegativeSum {
  T hardest = -kInfinity<T>;
  T sum = T(0);
  std::int32_t kept = 0;

  // The order of the two does not matter, not even to the bits.
  MSK_DEVICE void merge(const NegativeSum& other, T beta) {
    const T top = other.hardest > hardest ? other.hardest : hardest;
    sum = referred_to(top, beta) + other.referred_to(top, beta);
    hardest = top;
    kept += other.kept;
  }
  // log sum exp(beta (S - base)), +inf if it is not a number.
  MSK_DEVICE T log_sum(const MultiSimilarity<T>& loss) const {
    if (sum == T(0)) return -kInfinity<T>;
    const T log_sum_exp = loss.neg_lse(hardest, sum);
    return std::isnan(log_sum_exp) ? kInfinity<T> : log_sum_exp;
  }

 private:
  MSK_DEVICE T referred_to(T top, T beta) const {
    return sum == T(0) ? sum : sum * std::exp(beta * (hardest - top));
  }
};

// The negatives among `count` pairs of a row or a column: pair k has similarity value(k) and is a
// negative where is(k). Any pair that is not finite spoils the sum.
template <int count, typename T, typename Value, typename Is>
MSK_DEVICE NegativeSum<T> negatives_of(Value value, Is is, T threshold, T beta) {
  NegativeSum<T> found;
#pragma unroll 8
  for (int k = 0; k < count; ++k) {
    const T s = value(k);
    found.sum = std::fma(s, T(0), found.sum);  // 0, or NaN from then on
    if (is(k)) found.hardest = std::fmax(found.hardest, s);
  }
  if (!(found.hardest > threshold)) return found;
#pragma unroll 8
  for (int k = 0; k < count; ++k) {
    const T s = value(k);
    if (!is(k) || !(s > threshold)) continue;
    found.sum += std::exp(beta * (s - found.hardest));
    ++found.kept;
  }
  return found;
}

}  // namespace msk::gpu
