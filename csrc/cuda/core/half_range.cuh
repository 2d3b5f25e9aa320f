// float16 has few exponents: weights of a row are brought to just below 2^15 by a power of two.
#pragma once

#include <cmath>
#include <type_traits>

#include "cuda/core/ptx.cuh"

namespace msk::gpu {

template <typename Operand>
constexpr bool kFewExponents = std::is_same_v<Operand, Half>;

// That power, from the greatest weight.
template <typename T>
MSK_DEVICE T weight_scale_of(T greatest) {
  if (!(greatest > 0) || !std::isfinite(greatest)) return T(1);
  const int exponent = 14 - std::ilogb(greatest);
  return std::scalbn(T(1), exponent > 120 ? 120 : exponent);
}

}  // namespace msk::gpu
