// First phase: a padded copy of each row, times a power of two that brings its largest element into
// [1, 2). Nothing is rounded, so half inputs keep similarities as exact as float32 ones.
#pragma once

#include "cuda/core/block_reduce.cuh"
#include "cuda/pairs/side.cuh"

namespace msk::gpu {

template <typename T>
struct Extent {
  T largest;
  bool finite;
  MSK_DEVICE Extent exchanged(int mask) const {
    return {exchange(largest, mask), exchange(int(finite), mask) != 0};
  }
  MSK_DEVICE static Extent joined(const Extent& a, const Extent& b) {
    return {a.largest > b.largest ? a.largest : b.largest, a.finite && b.finite};
  }
};

// What a row of that sum of squares is multiplied by. The squares are those of the row times
// 2^-exponent = power.
template <class P>
MSK_DEVICE void set_scale(const Side<P>& side, std::int64_t i, bool normalize, bool finite,
                          double square, int exponent, typename P::Scalar power) {
  using Scalar = typename P::Scalar;
  Scalar scale = Scalar(1), residue = Scalar(0), inverse = Scalar(1);
  if (normalize && square > 0) {
    const double exact = 1 / std::sqrt(square);
    scale = Scalar(exact);
    residue = Scalar((exact - scale) / exact);
    inverse = scale * power;
    if (inverse > Scalar(1 / kNormFloor)) {
      scale = std::scalbn(Scalar(1 / kNormFloor), exponent);
      inverse = residue = Scalar(0);
    }
  } else if (normalize) {
    inverse = Scalar(0);
  }
  side.scale[i] = finite ? scale : kNaN<Scalar>;
  side.residue[i] = residue;
  side.inverse[i] = inverse;
}

// One block a row. `Input` is the type of the embeddings, P::Operand that of the copy.
template <class P, typename Input>
MSK_PHASE void prepare(const Problem& p, const SideInput& in, const SideBuffers& buffers) {
  const Side<P> side(in, buffers, p.padded_depth);
  const std::int64_t depth = p.depth;
  const bool normalize = p.options.normalize;
  using Scalar = typename P::Scalar;
  Extent<Scalar>* const extents = reinterpret_cast<Extent<Scalar>*>(shared_memory());
  Sum<double>* const sums = reinterpret_cast<Sum<double>*>(extents + kWarps<P>);
  for (std::int64_t i = blockIdx.x; i < padded<P>(side.count); i += gridDim.x) {
    typename P::Operand* const out = side.copy + i * side.stride;
    const Input* const row =
        static_cast<const Input*>(in.x) + (i < side.count ? in.sample(i) : 0) * in.row_stride;
    const std::int64_t filled = i < side.count ? depth : 0;
    Extent<Scalar> extent{Scalar(0), true};
    for (std::int64_t d = threadIdx.x; d < filled; d += kThreads<P>) {
      const Scalar x = std::fabs(Scalar(widen(row[d])));
      extent.finite = extent.finite && std::isfinite(x);
      extent.largest = x > extent.largest ? x : extent.largest;
    }
    extent = block_reduce<kWarps<P>>(extent, extents, Extent<Scalar>::joined);
    const int exponent =
        normalize && extent.finite && extent.largest > 0 ? std::ilogb(extent.largest) : 0;
    // In two factors: one alone overflows for the least denormals.
    const Scalar first = std::scalbn(Scalar(1), -(exponent / 2));
    const Scalar second = std::scalbn(Scalar(1), -(exponent - exponent / 2));
    Sum<double> square{0};
    for (std::int64_t d = threadIdx.x; d < side.stride; d += kThreads<P>) {
      Scalar x = Scalar(0);
      if (d < filled && extent.finite) x = Scalar(widen(row[d])) * first * second;
      out[d] = narrow<typename P::Operand>(x);
      x = P::as_read(out[d]);  // similarities of rows as they are read have no error along them
      square.value += double(x) * x;
    }
    square = block_reduce<kWarps<P>>(square, sums, Sum<double>::plus);
    if (threadIdx.x == 0)
      set_scale(side, i, normalize, extent.finite, square.value, exponent, first * second);
  }
}

}  // namespace msk::gpu
