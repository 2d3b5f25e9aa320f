// Which tiles the gradient visits: for each tile of rows a list of tiles of columns.
#pragma once

#include "cuda/tiled/negative_scan.cuh"

namespace msk::gpu {

// Whether a tile of negatives weighs next to nothing. A row's kept negatives in it weigh at most
// exp(bound - offset), `offset` the least of those rows whose terms count. It is left out if that
// is 0, or so little that no row loses more than `skip_below` of the greatest weight of any row.
template <class P>
struct LightTiles {
  using Scalar = typename P::Scalar;
  const Problem& p;
  std::int64_t column_tiles, bound_count;  // of the scan
  Scalar bar;

  // All threads of the block together.
  MSK_DEVICE LightTiles(const Problem& p, const OrderedPairs<P>& pairs, Greatest<Scalar>* smem)
      : p(p) {
    const Tiled& t = p.tiled;
    const SideBuffers& anchors = t.transposed ? p.column_buffers : p.row_buffers;
    const std::int64_t anchor_tiles = t.transposed ? pairs.column_tiles : pairs.row_tiles;
    column_tiles = t.transposed ? pairs.row_tiles : pairs.column_tiles;
    bound_count = (column_tiles + t.tiles_per_bound - 1) / t.tiles_per_bound;
    Greatest<Scalar> offset{-kInfinity<Scalar>};
    for (std::int64_t k = threadIdx.x; k < anchor_tiles; k += kThreads<P>)
      offset = Greatest<Scalar>::greater(offset,
                                         {static_cast<const Scalar*>(anchors.greatest_offset)[k]});
    offset = block_reduce<kWarps<P>>(offset, smem, Greatest<Scalar>::greater);
    // The weights of a row's negatives sum to 1 - exp(-offset).
    const Scalar tolerance = Scalar(t.skip_below) * -std::expm1(-offset.value);
    bar = std::log(tolerance / Scalar(column_tiles));  // -inf where nothing may be lost
  }
  MSK_DEVICE bool operator()(std::int64_t row_tile, std::int64_t column_tile) const {
    const Tiled& t = p.tiled;
    std::int64_t a = row_tile, b = column_tile;
    if (t.transposed || (p.self && a > b)) a = column_tile, b = row_tile;
    Scalar offset = kInfinity<Scalar>;
    if (p.terms & row_term)
      offset = static_cast<const Scalar*>(p.row_buffers.least_offset)[row_tile];
    if (p.terms & column_term) {
      const Scalar other = static_cast<const Scalar*>(p.column_buffers.least_offset)[column_tile];
      offset = std::fmin(offset, other);
    }
    const Scalar bound =
        static_cast<const Scalar*>(t.weight_bounds)[a * bound_count + b / t.tiles_per_bound];
    return bound - offset <= bar;
  }
};

// One block a tile of rows of the panel; kListStep tiles of columns at a time, in their order.
template <class P>
MSK_KERNEL(kThreads<P>, 2)
tile_list_kernel(const MSK_PARAMETER Problem p) {
  using Scalar = typename P::Scalar;
  constexpr int kListStep = kThreads<P>;  // tiles of columns at a time
  static_assert(kListStep <= kThreads<P>, "a thread for each tile of columns");
  const Tiled& t = p.tiled;
  const OrderedPairs<P> pairs(p);
  auto* const smem = reinterpret_cast<Greatest<Scalar>*>(shared_memory());
  auto* const warp_counts = reinterpret_cast<std::int32_t*>(smem + kWarps<P>);
  const std::int64_t tile = t.first + blockIdx.x;
  std::int32_t* const out = t.tiles + blockIdx.x * t.width;
  std::int32_t count = 0;
  if (t.weight_bounds) {
    const LightTiles<P> light(p, pairs, smem);
    for (std::int64_t first = 0; first < pairs.column_tiles; first += kListStep) {
      const std::int64_t column = first + threadIdx.x;
      const bool listed = threadIdx.x < kListStep && column < pairs.column_tiles &&
                          (pairs.overlap(tile, column) || !light(tile, column));
      const unsigned lanes = __ballot_sync(0xffffffffu, listed);
      __syncthreads();  // the counts may still be read for the tiles before
      if (lane() == 0) store_shared(warp_counts + threadIdx.x / 32, std::int32_t(__popc(lanes)));
      __syncthreads();
      std::int32_t before = count + __popc(lanes & ((1u << lane()) - 1));
      for (int w = 0; w < kWarps<P>; ++w) {
        const std::int32_t more = load_shared(warp_counts + w);
        if (w < int(threadIdx.x) / 32) before += more;
        count += more;
      }
      if (listed) out[before] = std::int32_t(column);
    }
  } else {
    for (std::int64_t column = threadIdx.x; column < pairs.column_tiles; column += kThreads<P>)
      out[column] = std::int32_t(column);
    count = std::int32_t(pairs.column_tiles);
  }
  if (threadIdx.x == 0) t.counts[blockIdx.x] = count;
}

}  // namespace msk::gpu
