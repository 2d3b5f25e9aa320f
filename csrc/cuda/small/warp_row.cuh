// A row of similarities in the registers of one warp.
#pragma once

#include "cuda/core/block_reduce.cuh"
#include "rules/pair_loss.h"

namespace msk::gpu {

// Lane l has columns l, l + 32, and so on; in a set of its pairs bit k is column l + 32 k.
using PairSet = std::uint32_t;

template <typename T, int kValues>
struct WarpRow {
  static_assert(kValues <= 32, "a bit for each value");
  T value[kValues];

  // visit(value) of the pairs in a set. Unrolled, as registers have no addresses.
  template <class Visit>
  MSK_DEVICE void each(PairSet set, const Visit& visit) const {
#pragma unroll
    for (int k = 0; k < kValues; ++k)
      if (set >> k & 1) visit(value[k]);
  }
  template <class Keeps>
  MSK_DEVICE PairSet subset(PairSet set, const Keeps& keeps) const {
    PairSet kept = 0;
#pragma unroll
    for (int k = 0; k < kValues; ++k) kept |= PairSet(keeps(value[k])) << k;
    return set & kept;
  }
};

MSK_DEVICE int warp_count(PairSet set) {
  return warp_reduce(Sum<int>{__popc(set)}, Sum<int>::plus).value;
}
template <typename T>
MSK_DEVICE T warp_most(T value) {
  return warp_reduce(Most<T>{value}, Most<T>::greater).value;
}
template <typename T>
MSK_DEVICE T warp_sum(T value) {
  return warp_reduce(Sum<T>{value}, Sum<T>::plus).value;
}

// visit(form) with a shape that the compiler knows: chosen by rows, not by pairs.
template <typename T, class Visit>
MSK_DEVICE auto with_shape(const Form<T>& form, const Visit& visit) {
  Form<T> known = form;
  switch (form.shape) {
    case Shape::circle:
      known.shape = Shape::circle;
      return visit(known);
    case Shape::sigmoid:
      known.shape = Shape::sigmoid;
      return visit(known);
    case Shape::hinge:
      known.shape = Shape::hinge;
      return visit(known);
    case Shape::exponential:
    case Shape::ranked:  // has another kernel
      break;
  }
  known.shape = Shape::exponential;
  return visit(known);
}

// Of one kind of pairs: see RowSums.
template <typename T>
struct KindSums {
  T sum, moment;
};

// Over the kept pairs of a kind, `count` in the whole row, of values sign * S.
template <typename T, int kValues>
MSK_DEVICE KindSums<T> kind_sums(const WarpRow<T, kValues>& row, PairSet kept, int count,
                                 const Form<T>& form, T offset, bool with_moment) {
  const T sign = form.sign;
  return with_shape(form, [&](const Form<T>& known) {
    T sum = T(0), moment = T(0);
    if (!is_log_sum(known)) {
      row.each(kept, [&](T s) { sum += summand(known, sign * s, offset); });
      if (with_moment)
        row.each(kept, [&](T s) { moment += sigmoid(exponent_of(known, sign * s) - offset); });
    } else if (count) {
      T peak = -kInfinity<T>;
      row.each(kept, [&](T s) {
        const T z = exponent_of(known, sign * s);
        peak = z > peak ? z : peak;
      });
      peak = warp_most(peak);
      row.each(kept, [&](T s) { sum += std::exp(below_peak(exponent_of(known, sign * s), peak)); });
      if (with_moment) row.each(kept, [&](T s) { moment += sign * s; });
      return KindSums<T>{peak + std::log(warp_sum(sum)), warp_sum(moment)};
    } else {
      sum = -kInfinity<T>;
    }
    return KindSums<T>{warp_sum(sum), warp_sum(moment)};
  });
}

// The k-th greatest of a set, -inf of fewer.
template <typename T, int kValues>
MSK_DEVICE T kth_greatest(const WarpRow<T, kValues>& row, PairSet set, int k) {
  T bound = kInfinity<T>;
  for (int known = 0; known < k;) {
    T next = -kInfinity<T>;
    row.each(set, [&](T s) { next = s < bound && s > next ? s : next; });
    bound = warp_most(next);
    const int tied = warp_count(row.subset(set, [&](T s) { return s == bound; }));
    if (!tied) break;
    known += tied;
  }
  return bound;
}

}  // namespace msk::gpu
