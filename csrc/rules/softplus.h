// Finished log-sum-exps, joined and with a 1 added.
#pragma once

#include <cmath>
#include <limits>

#include "host_device.h"

namespace msk {

// a b as its type holds it. Exponents cancel: z - offset is 0 for the only pair of a sum, which a
// GPU's compiler misses by the rounding of z where it makes one operation of `a * b - offset`.
template <typename T>
MSK_HOST_DEVICE inline T rounded_product(T a, T b) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == sizeof(double))
    return __dmul_rn(a, b);
  else
    return __fmul_rn(a, b);
#else
  return a * b;  // compiled without contraction
#endif
}

// log(1 + exp z). The empty sum, z = -inf, costs 0. Adding the 1 to the running sum instead would
// round small losses to 0 in float32.
template <typename T>
MSK_HOST_DEVICE inline T softplus(T z) {
  return (z > T(0) ? z : T(0)) + std::log1p(std::exp(-std::fabs(z)));
}

// log(exp a + exp b), of which one may be -inf.
template <typename T>
MSK_HOST_DEVICE inline T log_add_exp(T a, T b) {
  const T most = a > b ? a : b, least = a > b ? b : a;
  return std::isinf(most) ? most : most + std::log1p(std::exp(least - most));
}

}  // namespace msk
