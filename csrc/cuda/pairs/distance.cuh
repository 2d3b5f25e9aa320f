// Distances, from the products of longer rows: see ms_kernels/backends/products.py.
#pragma once

#include "call.h"
#include "cuda/core/number.h"
#include "rules/infinity.h"

namespace msk::gpu {

// The similarity of two rows, whose product is less half a squared distance if one is asked for. A
// product above 0 is rounding; one that is not a number stays so.
template <typename T>
MSK_DEVICE T distance_similarity(Distance distance, T product) {
  if (distance == Distance::none) return product;
  const T less_square = product > T(0) ? T(0) : product + product;
  return distance == Distance::euclidean ? -std::sqrt(-less_square) : less_square;
}

// What a weight on such a similarity is on the product; on distance 0 nothing. One that is not a
// number stays so.
template <typename T>
MSK_DEVICE T through_distance(Distance distance, T weight, T s) {
  if (distance == Distance::none) return weight;
  if (distance == Distance::euclidean) return weight / (s < T(0) ? -s : kInfinity<T>);
  return weight + weight;
}

}  // namespace msk::gpu
