// Stands in for csrc/cuda/core/ptx.cuh: the same functions, with the fragment layouts of the PTX
// manual (sections on mma.m16n8k16, mma.m16n8k8, mma.m8n8k4 and ldmatrix), executed lane by lane.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/core/number.h"
#include "global_memory.h"
#include "machine.h"

#define HOST_GPU_UNTRACKED __attribute__((no_sanitize("thread")))
#define MSK_DEVICE inline
#define MSK_PHASE  // not inline for nvcc either: the linker would find two
#define MSK_PARAMETER
#define MSK_KERNEL(threads, blocks) void
#define threadIdx (host_gpu::running->threadIdx)
#define blockIdx (host_gpu::running->blockIdx)
#define gridDim (host_gpu::grid_size)

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  host_gpu::wait_for_block(file, line);
}

template <typename T>
T __shfl_xor_sync(unsigned lanes, T value, int mask) {
  if (lanes != 0xffffffffu) host_gpu::fail("__shfl_xor_sync expects all lanes");
  struct Arguments {
    T value, out;
    int mask;
  } mine{value, value, mask};
  host_gpu::wait_for_warp("__shfl_xor_sync", &mine, [](host_gpu::Warp& warp) {
    for (int l = 0; l < 32; ++l) {
      auto* to = static_cast<Arguments*>(warp.arguments[l]);
      to->out = static_cast<Arguments*>(warp.arguments[l ^ to->mask])->value;
    }
  });
  return mine.out;
}

// Bit l: lane l's answer.
inline unsigned __ballot_sync(unsigned lanes, int answer) {
  if (lanes != 0xffffffffu) host_gpu::fail("__ballot_sync expects all lanes");
  struct Arguments {
    int answer;
    unsigned out;
  } mine{answer, 0};
  host_gpu::wait_for_warp("__ballot_sync", &mine, [](host_gpu::Warp& warp) {
    unsigned bits = 0;
    for (int l = 0; l < 32; ++l)
      bits |= unsigned(static_cast<Arguments*>(warp.arguments[l])->answer != 0) << l;
    for (int l = 0; l < 32; ++l) static_cast<Arguments*>(warp.arguments[l])->out = bits;
  });
  return mine.out;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

namespace msk::gpu {

inline std::byte* shared_memory() { return host_gpu::running->block->memory.data(); }

// These two are how shared memory is accessed: what a tracked build sees beside them is a fault.
template <typename T>
HOST_GPU_UNTRACKED T load_shared(const T* from) {
  host_gpu::running->block->read(from, sizeof(T), alignof(T));
  return *from;
}
template <typename T>
HOST_GPU_UNTRACKED void store_shared(T* to, T value) {
  host_gpu::running->block->write(to, sizeof(T), alignof(T));
  *to = value;
}

template <typename T, int count>
void store_16(T* to, const T (&values)[count]) {
  static_assert(sizeof(values) == 16);
  if (reinterpret_cast<std::uintptr_t>(to) % 16 != 0) host_gpu::fail("store_16 is not aligned");
  for (int k = 0; k < count; ++k) to[k] = values[k];
}

HOST_GPU_UNTRACKED inline void raise_flag(std::int32_t* flag) {
  host_gpu::write_global_alike(flag, sizeof(*flag), __builtin_return_address(0));
  *flag = 1;
}

// The copy may read at any time from here until it is waited for.
inline void cp_async_16(void* to, const void* from) { host_gpu::begin_copy(to, from); }
inline void cp_async_wait_all() { host_gpu::end_copies(); }
inline void cp_async_16_or_zeros(void* to, const void* from, int bytes) {
  host_gpu::begin_copy(to, from, bytes);
}
inline void cp_async_commit() { host_gpu::commit_copies(); }
template <int pending>
void cp_async_wait_all_but() {
  host_gpu::end_copies(pending);
}

template <bool transposed>
void ldmatrix(std::uint32_t (&r)[4], const void* row) {
  struct Arguments {
    std::uint32_t* out;
    const std::uint16_t* row;
  } mine{r, static_cast<const std::uint16_t*>(row)};
  host_gpu::running->block->read(row, 16, 16);
  const char* const name = transposed ? "ldmatrix.trans" : "ldmatrix";
  host_gpu::wait_for_warp(name, &mine, [](host_gpu::Warp& warp) {
    const auto lane = [&](int l) { return static_cast<Arguments*>(warp.arguments[l]); };
    for (int l = 0; l < 32; ++l)
      for (int matrix = 0; matrix < 4; ++matrix) {
        std::uint32_t pair = 0;
        for (int half = 0; half < 2; ++half) {
          const int i = l / 4, j = l % 4 * 2 + half;
          const std::uint16_t element =
              transposed ? lane(matrix * 8 + j)->row[i] : lane(matrix * 8 + i)->row[j];
          pair |= std::uint32_t(element) << (16 * half);
        }
        lane(l)->out[matrix] = pair;
      }
  });
}
inline void ldmatrix_x4(std::uint32_t (&r)[4], const void* row) { ldmatrix<false>(r, row); }
inline void ldmatrix_x4_transposed(std::uint32_t (&r)[4], const void* row) {
  ldmatrix<true>(r, row);
}

inline std::uint32_t float_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float bits_float(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline float widen(BFloat16 x) { return bits_float(std::uint32_t(x.bits) << 16); }
inline float widen(Half x) {
  const std::uint32_t sign = std::uint32_t(x.bits & 0x8000) << 16;
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  if (exponent == 31) return bits_float(sign | 0x7f800000u | std::uint32_t(fraction) << 13);
  const float magnitude = exponent ? std::ldexp(float(1024 + fraction), exponent - 25)
                                   : std::ldexp(float(fraction), -24);
  return sign ? -magnitude : magnitude;
}
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

template <typename T>
T narrow(Compute<T> x) {
  return x;
}
template <>
inline BFloat16 narrow<BFloat16>(float x) {
  const std::uint32_t bits = float_bits(x);
  if (std::isnan(x)) return {std::uint16_t(0x7fff)};
  return {std::uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to nearest, ties to even
}
template <>
inline Half narrow<Half>(float x) {
  const auto sign = std::uint16_t(float_bits(x) >> 16 & 0x8000);
  if (std::isnan(x)) return {std::uint16_t(0x7fff)};
  const float magnitude = std::fabs(x);
  if (magnitude >= 65520.0f) return {std::uint16_t(sign | 0x7c00)};
  if (magnitude < 6.103515625e-05f)  // denormal: a multiple of 2^-24, ties to even
    return {std::uint16_t(sign | int(std::nearbyint(std::ldexp(magnitude, 24))))};
  const std::uint32_t bits = float_bits(magnitude);
  const std::uint32_t rounded = bits + 0xfff + (bits >> 13 & 1);
  return {std::uint16_t(sign | ((rounded >> 13) - (112 << 10)))};
}

// To nearest, ties away from zero.
inline float round_to_tf32(float x) {
  if (!std::isfinite(x)) return x;
  return bits_float((float_bits(x) + 0x1000) & ~0x1fffu);
}

// Tensor cores keep a sum longer than a float and cut what does not fit.
inline float cut_to_float(double x) {
  const auto near = float(x);
  if (!std::isfinite(near) || std::fabs(double(near)) <= std::fabs(x)) return near;
  return std::nextafterf(near, 0.0f);
}

template <typename C, typename A, typename B>
struct MmaArguments {
  C* c;
  const A* a;
  const B* b;
};
using WordArguments = MmaArguments<float, std::uint32_t, std::uint32_t>;

inline WordArguments* words(host_gpu::Warp& warp, int lane) {
  return static_cast<WordArguments*>(warp.arguments[lane]);
}

template <int depth>
void accumulate(host_gpu::Warp& warp, const double (&a)[16][depth], const double (&b)[depth][8]) {
  for (int row = 0; row < 16; ++row) {
    const auto c = [&](int column) -> float& {
      return words(warp, row % 8 * 4 + column / 2)->c[row / 8 * 2 + column % 2];
    };
    double sum[8];
    for (int column = 0; column < 8; ++column) sum[column] = c(column);
    for (int k = 0; k < depth; ++k)
      for (int column = 0; column < 8; ++column) sum[column] += a[row][k] * b[k][column];
    for (int column = 0; column < 8; ++column) c(column) = cut_to_float(sum[column]);
  }
}

template <typename T>
void mma_m16n8k16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], T) {
  WordArguments mine{c, a, b};
  const char* const name = std::is_same_v<T, Half> ? "mma.m16n8k16.f16" : "mma.m16n8k16.bf16";
  host_gpu::wait_for_warp(name, &mine, [](host_gpu::Warp& warp) {
    double left[16][16], right[16][8];
    const auto part = [](std::uint32_t word, int k) {
      return widen(T{std::uint16_t(word >> (k % 2 * 16))});
    };
    for (int k = 0; k < 16; ++k) {
      for (int row = 0; row < 16; ++row)
        left[row][k] = part(words(warp, row % 8 * 4 + k % 8 / 2)->a[row / 8 + k / 8 * 2], k);
      for (int column = 0; column < 8; ++column)
        right[k][column] = part(words(warp, column * 4 + k % 8 / 2)->b[k / 8], k);
    }
    accumulate<16>(warp, left, right);
  });
}

inline void mma_m16n8k8_tf32(float (&c)[4], const std::uint32_t (&a)[4],
                             const std::uint32_t (&b)[2]) {
  WordArguments mine{c, a, b};
  host_gpu::wait_for_warp("mma.m16n8k8.tf32", &mine, [](host_gpu::Warp& warp) {
    const auto cut = [](std::uint32_t word) { return bits_float(word & ~0x1fffu); };
    double left[16][8], right[8][8];
    for (int k = 0; k < 8; ++k) {
      for (int row = 0; row < 16; ++row)
        left[row][k] = cut(words(warp, row % 8 * 4 + k % 4)->a[row / 8 + k / 4 * 2]);
      for (int column = 0; column < 8; ++column)
        right[k][column] = cut(words(warp, column * 4 + k % 4)->b[k / 4]);
    }
    accumulate<8>(warp, left, right);
  });
}

inline void mma_m8n8k4_f64(double (&c)[2], double a, double b) {
  using Arguments = MmaArguments<double, double, double>;
  Arguments mine{c, &a, &b};
  host_gpu::wait_for_warp("mma.m8n8k4.f64", &mine, [](host_gpu::Warp& warp) {
    const auto lane = [&](int l) { return static_cast<Arguments*>(warp.arguments[l]); };
    for (int row = 0; row < 8; ++row)
      for (int column = 0; column < 8; ++column) {
        double& c = lane(row * 4 + column / 2)->c[column % 2];
        for (int k = 0; k < 4; ++k)
          c = std::fma(*lane(row * 4 + k)->a, *lane(column * 4 + k)->b, c);
      }
  });
}

}  // namespace msk::gpu
