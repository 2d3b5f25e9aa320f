// Beside the first phase: scales of rows that the product reads as they were given.
#pragma once

#include "cuda/core/block_reduce.cuh"
#include "cuda/core/half_range.cuh"
#include "cuda/pairs/prepare.cuh"
#include "cuda/small/operand.cuh"

namespace msk::gpu {

// Rows of a largest element from 2^kLeastExponent to 2^kMostExponent, and rows of zeros, go as they
// are: neither their products nor those of their scales leave the range of a float, nor is a norm
// that counts under its floor. A float16 weight is multiplied by the scale of its column: there
// these must not lie far apart.
template <typename Operand>
constexpr int kLeastExponent = kFewExponents<Operand> ? -8 : -36;
template <typename Operand>
constexpr int kMostExponent = kFewExponents<Operand> ? 8 : 24;

// One warp a row, from the last block on: the first ones have tiles of the product.
template <class P>
MSK_PHASE void row_scales(const Problem& p, const SideInput& in, const SideBuffers& buffers,
                          std::int32_t* uncommon) {
  using Operand = typename P::Operand;
  using Scalar = typename P::Scalar;
  const Side<P> side(in, buffers, p.padded_depth);
  const auto x = embeddings_of<P>(p, in, buffers, false);
  const bool normalize = p.options.normalize;
  const int warp = threadIdx.x / 32, block = gridDim.x - 1 - blockIdx.x;
  for (int i = warp * gridDim.x + block; i < x.rows; i += gridDim.x * kWarps<P>) {
    const Operand* const row = x.at + i * x.stride;
    Extent<Scalar> extent{Scalar(0), true};
    Sum<double> square{0};
    for (int d = lane(); d < x.columns; d += 32) {
      const Scalar read = P::as_read(row[d]), size = std::fabs(Scalar(widen(row[d])));
      extent.finite = extent.finite && std::isfinite(size);
      extent.largest = size > extent.largest ? size : extent.largest;
      square.value += double(read) * read;
    }
    extent = warp_reduce(extent, Extent<Scalar>::joined);
    square = warp_reduce(square, Sum<double>::plus);
    if (lane() != 0) continue;
    const bool in_range = extent.largest >= std::scalbn(Scalar(1), kLeastExponent<Operand>) &&
                          extent.largest <= std::scalbn(Scalar(1), kMostExponent<Operand>);
    uncommon[i] = !extent.finite || (normalize && extent.largest > Scalar(0) && !in_range);
    set_scale(side, i, normalize, extent.finite, square.value, 0, Scalar(1));
  }
}

// Shared memory that prepare() leaves alone.
constexpr std::size_t kBehindPrepare = 512;

// Whether any row wants a copy; the same for all blocks.
template <class P>
MSK_PHASE bool any_uncommon(const Problem& p) {
  int found = 0;
  for (int i = threadIdx.x; i < p.rows.count; i += kThreads<P>) found |= p.small.uncommon_rows[i];
  if (!p.self)
    for (int j = threadIdx.x; j < p.columns.count; j += kThreads<P>)
      found |= p.small.uncommon_columns[j];
  Any* const smem = reinterpret_cast<Any*>(shared_memory() + kBehindPrepare);
  return block_reduce<kWarps<P>>(Any{found}, smem, Any::either).value != 0;
}

}  // namespace msk::gpu
