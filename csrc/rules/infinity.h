// What is beyond every number, and what is none.
#pragma once

#include <limits>

namespace msk {

template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <typename T>
constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();

}  // namespace msk
