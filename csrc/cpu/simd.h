// Vectors of the widest kind that the translation unit is compiled for.
//
// The kernels are compiled once for each instruction set, each time into its own namespace MSK_ISA:
// two builds of one inline function under one name would be merged by the linker.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "../rules/infinity.h"

#if defined(__AVX__) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace msk::MSK_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct Simd;
template <>
struct Simd<float> {
  using Code = std::int32_t;
  using Vec = float __attribute__((vector_size(kVectorBytes)));
  using Mask = Code __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Simd<double> {
  using Code = std::int64_t;
  using Vec = double __attribute__((vector_size(kVectorBytes)));
  using Mask = Code __attribute__((vector_size(kVectorBytes)));
};

// An integer as wide as the scalar, so that masks of labels fit masks of similarities.
template <typename T>
using Code = typename Simd<T>::Code;
template <typename T>
using Vec = typename Simd<T>::Vec;
template <typename T>
using Mask = typename Simd<T>::Mask;
template <typename T>
constexpr int kLanes = kVectorBytes / sizeof(T);

template <typename T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <typename T>
inline Mask<T> load_codes(const Code<T>* p) {
  Mask<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <typename T, typename V>
inline void store(T* p, V v) {
  std::memcpy(p, &v, sizeof v);
}
template <typename T>
inline Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}
// a b + c, rounded once where the machine can. Written out, and contraction switched off in the
// build: whether the compiler fuses must not depend on the function that an expression stands in.
template <typename T>
inline Vec<T> multiply_add(Vec<T> a, Vec<T> b, Vec<T> c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 8)
    return (Vec<T>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
  else
    return (Vec<T>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  if constexpr (sizeof(T) == 8)
    return (Vec<T>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
  else
    return (Vec<T>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  if constexpr (sizeof(T) == 8)
    return (Vec<T>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
  else
    return (Vec<T>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
// With a mask of all lanes: GCC warns of what it leaves undefined without one.
template <typename T>
inline Vec<T> square_root(Vec<T> x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 8)
    return (Vec<T>)_mm512_maskz_sqrt_pd(__mmask8(-1), (__m512d)x);
  else
    return (Vec<T>)_mm512_maskz_sqrt_ps(__mmask16(-1), (__m512)x);
#elif defined(__AVX__)
  if constexpr (sizeof(T) == 8)
    return (Vec<T>)_mm256_sqrt_pd((__m256d)x);
  else
    return (Vec<T>)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  if constexpr (sizeof(T) == 8)
    return (Vec<T>)_mm_sqrt_pd((__m128d)x);
  else
    return (Vec<T>)_mm_sqrt_ps((__m128)x);
#elif defined(__aarch64__)
  if constexpr (sizeof(T) == 8)
    return (Vec<T>)vsqrtq_f64((float64x2_t)x);
  else
    return (Vec<T>)vsqrtq_f32((float32x4_t)x);
#else
  for (int i = 0; i < kLanes<T>; ++i) x[i] = std::sqrt(x[i]);
  return x;
#endif
}
template <typename V>
inline V greater(V a, V b) {
  return a > b ? a : b;
}
template <typename T>
inline T sum_lanes(Vec<T> v) {
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int width = kLanes<T> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}
template <typename T>
inline T greatest_lane(Vec<T> v) {
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int width = kLanes<T> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i)
      lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  return lanes[0];
}
template <typename T>
inline Code<T> sum_lanes_of_codes(Mask<T> v) {
  Code<T> lanes[kLanes<T>], total = 0;
  store(lanes, v);
  for (Code<T> lane : lanes) total += lane;
  return total;
}

// One bit for each true lane, lane 0 lowest.
template <typename T>
inline std::uint32_t bits(Mask<T> m) {
  [[maybe_unused]] constexpr bool wide = sizeof(T) == 8;
#if defined(__AVX512DQ__)
  if constexpr (wide)
    return _mm512_movepi64_mask((__m512i)m);
  else
    return _mm512_movepi32_mask((__m512i)m);
#elif defined(__AVX__)
  if constexpr (wide)
    return _mm256_movemask_pd((__m256d)m);
  else
    return _mm256_movemask_ps((__m256)m);
#elif defined(__SSE2__)
  if constexpr (wide)
    return _mm_movemask_pd((__m128d)m);
  else
    return _mm_movemask_ps((__m128)m);
#else
  std::uint32_t out = 0;
  for (int i = 0; i < kLanes<T>; ++i) out |= std::uint32_t(m[i] != 0) << i;
  return out;
#endif
}

template <typename T>
inline Mask<T> lane_numbers() {
  Mask<T> v;
  for (int i = 0; i < kLanes<T>; ++i) v[i] = i;
  return v;
}

}  // namespace msk::MSK_ISA
