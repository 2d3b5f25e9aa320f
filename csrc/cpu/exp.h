// exp of a vector: 2^n times a Taylor polynomial on [-log(2)/2, log(2)/2].
#pragma once

#include "simd.h"

namespace msk::MSK_ISA {

template <typename T>
struct ExpConstants;
// `magic` + n rounds to an integer n held in the lowest mantissa bits. Below `least` the result is
// 0, not a denormal; above `most` it stays at exp(most). The degree keeps the remainder under a
// tenth of an ulp: (log(2)/2)^8 / 8! = 5e-9 and (log(2)/2)^14 / 14! = 4e-18.
template <>
struct ExpConstants<float> {
  static constexpr float least = -86.0f, most = 88.0f, magic = 12582912.0f;
  static constexpr float log2_high = 0.693359375f, log2_low = -2.12194440e-4f;
  static constexpr int mantissa = 23, degree = 7;
};
template <>
struct ExpConstants<double> {
  static constexpr double least = -707.0, most = 709.0, magic = 6755399441055744.0;
  static constexpr double log2_high = 6.93147180369123816490e-01;
  static constexpr double log2_low = 1.90821492927058770002e-10;
  static constexpr int mantissa = 52, degree = 13;
};

template <typename T>
constexpr T inverse_factorial(int n) {
  double product = 1;
  for (int k = 2; k <= n; ++k) product *= k;
  return T(1 / product);
}

template <typename T>
inline Vec<T> exp(Vec<T> x) {
  using K = ExpConstants<T>;
  const Mask<T> underflow = x < K::least;
  Vec<T> z = underflow ? broadcast(K::least) : x;
  z = z > K::most ? broadcast(K::most) : z;
  const Vec<T> magic = broadcast(K::magic);
  const Vec<T> shifted = multiply_add<T>(z, broadcast(T(1.44269504088896340736)), magic);
  const Vec<T> n = shifted - magic;
  Vec<T> r = multiply_add<T>(n, broadcast(-K::log2_high), z);
  r = multiply_add<T>(n, broadcast(-K::log2_low), r);
  Vec<T> sum = broadcast(inverse_factorial<T>(K::degree));
#pragma GCC unroll 16
  for (int k = K::degree - 1; k >= 0; --k)
    sum = multiply_add<T>(sum, r, broadcast(inverse_factorial<T>(k)));
  const Mask<T> exponent = ((Mask<T>)shifted - (Mask<T>)magic) << K::mantissa;
  return underflow ? Vec<T>{} : (Vec<T>)((Mask<T>)sum + exponent);
}

}  // namespace msk::MSK_ISA
