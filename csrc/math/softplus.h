// log(1 + exp z), taken of a finished log-sum-exp.
#pragma once

#include <cmath>

#include "host_device.h"

namespace msk {

// The empty sum, z = -inf, costs 0. Adding the 1 to the running sum instead would round small
// losses to 0 in float32.
template <typename T>
MSK_HOST_DEVICE inline T softplus(T z) {
  return (z > T(0) ? z : T(0)) + std::log1p(std::exp(-std::fabs(z)));
}

}  // namespace msk
