// Storage types of embeddings and operands. Arithmetic is always in float or double.
#pragma once

#include <cstdint>

namespace msk::gpu {

struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

template <typename T>
struct ComputeOf {
  using Type = float;
};
template <>
struct ComputeOf<double> {
  using Type = double;
};
// float64 for float64, else float32.
template <typename T>
using Compute = typename ComputeOf<T>::Type;

}  // namespace msk::gpu
