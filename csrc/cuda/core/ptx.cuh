// The instructions that CUDA C++ has no words for, and memory shared by a block.
//
// Everything here has a twin in tests/host_gpu/cuda/core/ptx.cuh that a CPU executes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/core/number.h"

#define MSK_DEVICE __device__ __forceinline__
// A phase of a kernel: called, not inlined, so that its registers are its own. To the linker it is
// as any function: inline or a template.
#define MSK_PHASE __device__ __noinline__
// A parameter that functions may take the address of, left where the launch put it.
#define MSK_PARAMETER __grid_constant__
// `blocks` of them fit one multiprocessor.
#define MSK_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)

namespace msk::gpu {

// Dynamic shared memory of the block.
MSK_DEVICE std::byte* shared_memory() {
  extern __shared__ __align__(16) unsigned char msk_shared[];
  return reinterpret_cast<std::byte*>(msk_shared);
}

// Shared memory is read and written through these two and the copies and matrix loads below.
template <typename T>
MSK_DEVICE T load_shared(const T* from) {
  return *from;
}
template <typename T>
MSK_DEVICE void store_shared(T* to, T value) {
  *to = value;
}

// 16 bytes to global memory, at an address that they divide.
template <typename T, int count>
MSK_DEVICE void store_16(T* to, const T (&values)[count]) {
  static_assert(sizeof(values) == 16);
  std::uint32_t words[4];
  memcpy(words, values, 16);
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words[0]), "r"(words[1]),
               "r"(words[2]), "r"(words[3])
               : "memory");
}

// A flag in global memory that any thread of a launch may raise: none of the launch reads it.
MSK_DEVICE void raise_flag(std::int32_t* flag) { *flag = 1; }

MSK_DEVICE std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes from global to shared memory, there once cp_async_wait_all has returned. Through L2
// only: a tile is read by other blocks, never again by this one.
MSK_DEVICE void cp_async_16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from)
               : "memory");
}
MSK_DEVICE void cp_async_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// The first `bytes` of them, of which 0 read nothing, and zeros for the rest.
MSK_DEVICE void cp_async_16_or_zeros(void* to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(bytes)
               : "memory");
}
// The thread's copies since the last call are a group, of which there may be none.
MSK_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All groups but the last `pending` are there.
template <int pending>
MSK_DEVICE void cp_async_wait_all_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
// Lane l gets elements 2 (l % 4) and the next of row l / 4 of each.
MSK_DEVICE void ldmatrix_x4(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same, each matrix transposed.
MSK_DEVICE void ldmatrix_x4_transposed(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// c += a b. With g = lane / 4 and t = lane % 4, c holds (g, 2t), (g, 2t + 1), (g + 8, 2t),
// (g + 8, 2t + 1).
// a: pairs of k = 2t at (g, k), (g + 8, k), (g, k + 8), (g + 8, k + 8); b: (k, g), (k + 8, g).
MSK_DEVICE void mma_m16n8k16(float (&c)[4], const std::uint32_t (&a)[4],
                             const std::uint32_t (&b)[2], Half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
MSK_DEVICE void mma_m16n8k16(float (&c)[4], const std::uint32_t (&a)[4],
                             const std::uint32_t (&b)[2], BFloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// a: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); b: (t, g), (t + 4, g), as bits of floats whose
// last 13 bits the hardware drops.
MSK_DEVICE void mma_m16n8k8_tf32(float (&c)[4], const std::uint32_t (&a)[4],
                                 const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// c: (g, 2t), (g, 2t + 1); a: (g, t); b: (t, g).
MSK_DEVICE void mma_m8n8k4_f64(double (&c)[2], double a, double b) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(c[0]), "+d"(c[1])
               : "d"(a), "d"(b));
}

// To the nearest number of 10 fraction bits.
MSK_DEVICE float round_to_tf32(float x) {
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}
MSK_DEVICE std::uint32_t float_bits(float x) { return __float_as_uint(x); }
MSK_DEVICE float bits_float(std::uint32_t x) { return __uint_as_float(x); }

MSK_DEVICE float widen(Half x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}
MSK_DEVICE float widen(BFloat16 x) { return __uint_as_float(std::uint32_t(x.bits) << 16); }
MSK_DEVICE float widen(float x) { return x; }
MSK_DEVICE double widen(double x) { return x; }

template <typename T>
MSK_DEVICE T narrow(Compute<T> x) {
  return x;
}
// Two at a time, one of them 0: the conversion of one alone is issued at a quarter of the rate.
template <>
MSK_DEVICE Half narrow<Half>(float x) {
  std::uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(x));
  return {std::uint16_t(pair)};
}
template <>
MSK_DEVICE BFloat16 narrow<BFloat16>(float x) {
  std::uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(x));
  return {std::uint16_t(pair)};
}

}  // namespace msk::gpu
