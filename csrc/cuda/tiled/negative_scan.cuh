// The one look at all pairs: partial sums of the negatives of rows and, in self mode, of columns.
#pragma once

#include "cuda/core/block_reduce.cuh"
#include "cuda/tiled/negative_sum.cuh"

namespace msk::gpu {

// Partial sums in global memory, one array for each part of them.
template <typename T>
struct Partials {
  T *hardest, *sum;
  std::int32_t* kept;
  MSK_DEVICE Partials(void* hardest, void* sum, std::int32_t* kept)
      : hardest(static_cast<T*>(hardest)), sum(static_cast<T*>(sum)), kept(kept) {}
  MSK_DEVICE NegativeSum<T> read(std::int64_t at) const {
    NegativeSum<T> found;
    found.hardest = hardest[at], found.sum = sum[at], found.kept = kept[at];
    return found;
  }
  MSK_DEVICE void write(std::int64_t at, const NegativeSum<T>& found) const {
    hardest[at] = found.hardest, sum[at] = found.sum, kept[at] = found.kept;
  }
};

template <class P>
struct NegativeScan {
  using Scalar = typename P::Scalar;
  using Tile = SimilarityTile<P>;
  using Sum = NegativeSum<Scalar>;
  static constexpr std::size_t kSharedBytes =
      Tile::kStageBytes + kThreads<P> * sizeof(Sum) + 2 * kWarps<P> * sizeof(Greatest<Scalar>);

  const Problem& p;
  const OrderedPairs<P> pairs;
  Sum* const smem;
  Greatest<Scalar>* const bound_smem;
  Any* const any_smem;

  MSK_DEVICE explicit NegativeScan(const Problem& p)
      : p(p),
        pairs(p),
        smem(reinterpret_cast<Sum*>(shared_memory() + Tile::kStageBytes)),
        bound_smem(reinterpret_cast<Greatest<Scalar>*>(smem + kThreads<P>)),
        any_smem(reinterpret_cast<Any*>(bound_smem + kWarps<P>)) {}

  // Not kept while products are taken.
  MSK_DEVICE Scalar beta() const { return learned_loss_of<Scalar>(p).beta; }
  MSK_DEVICE static Scalar of(const void* array, std::int64_t i) {
    return static_cast<const Scalar*>(array)[i];
  }
  // The similarity that a pair of the tile must pass to be looked at. A negative just under its
  // threshold is looked at too: rounding may still keep a positive that it decides about.
  MSK_DEVICE Scalar bar(std::int64_t row_tile, std::int64_t column_tile) const {
    if (writes_statistics(p)) return -kInfinity<Scalar>;  // wants the hardest in any case
    Scalar least = of(p.row_buffers.least_neg_threshold, row_tile);
    if (pairs.self) {
      const Scalar other = of(p.row_buffers.least_neg_threshold, column_tile);
      least = other < least ? other : least;
    }
    if (std::isinf(least)) return least;
    return least - (std::fabs(least) + std::fabs(pairs.loss.epsilon)) * (4 * kUlp<Scalar>);
  }
  // Bit k: whether pair k of the thread's half row, or half column if `down`, is a negative.
  MSK_DEVICE std::uint32_t negatives(std::int64_t row_tile, std::int64_t column_tile,
                                     bool down) const {
    const bool apart = pairs.apart(row_tile, column_tile);
    std::uint32_t bits = 0;
    for (int k = 0; k < kHalfTile<P>; ++k) {
      const int other = tile_half<P>() * kHalfTile<P> + k;
      const std::int64_t i = row_tile * kTile<P> + (down ? other : tile_index<P>());
      const std::int64_t j = column_tile * kTile<P> + (down ? tile_index<P>() : other);
      const bool is = pairs.present(i, j) && (apart || pairs.negative(i, j));
      bits |= std::uint32_t(is) << k;
    }
    return bits;
  }
  // The thread's half of its row of the tile in shared memory, or of its column.
  template <bool down, typename Is>
  MSK_DEVICE Sum half_sum_of(Is is, Scalar threshold) const {
    const int first = tile_half<P>() * kHalfTile<P>;
    const Scalar* const at =
        down ? Tile::shared(first, tile_index<P>()) : Tile::shared(tile_index<P>(), first);
    constexpr int ahead = down ? Tile::kStride : 1;
    return negatives_of<kHalfTile<P>, Scalar>([&](int k) { return load_shared(at + k * ahead); },
                                              is, threshold, beta());
  }
  template <bool down>
  MSK_DEVICE Sum half_sum(std::int64_t row_tile, std::int64_t column_tile, bool interior) const {
    const std::int64_t i = (down ? column_tile : row_tile) * kTile<P> + tile_index<P>();
    const Scalar threshold = pairs.loss.negative_threshold(of(p.row_buffers.hardest_positive, i));
    if (interior) return half_sum_of<down>([](int) { return true; }, threshold);
    const std::uint32_t bits = negatives(row_tile, column_tile, down);
    return half_sum_of<down>([&](int k) { return (bits >> k & 1) != 0; }, threshold);
  }
  // The row of the tile that the thread owns or, in the second half of the block, the column.
  MSK_DEVICE Sum own_sum(std::int64_t row_tile, std::int64_t column_tile, bool mirrored) const {
    const bool interior = pairs.interior(row_tile, column_tile);
    const Sum of_row = half_sum<false>(row_tile, column_tile, interior);
    Sum of_column;
    if (mirrored) of_column = half_sum<true>(row_tile, column_tile, interior);
    // Each thread passes on the half sum of the row or column that it does not own.
    store_shared(smem + threadIdx.x, tile_half<P>() == 0 ? of_column : of_row);
    __syncthreads();
    Sum own = tile_half<P>() == 0 ? of_row : of_column;
    own.merge(load_shared(smem + (threadIdx.x ^ kTile<P>)), beta());
    return own;
  }
};

// One block owns a tile of rows and column_tiles_per_block tiles of columns. In self mode it takes
// those on and above the diagonal: a tile above serves its rows and its columns, one on it its
// rows. Threads of the first half own a row, those of the second a column.
template <class P>
MSK_KERNEL(kThreads<P>, kResident<P>)
negative_scan_kernel(const MSK_PARAMETER Problem p) {
  using Scalar = typename P::Scalar;
  using Scan = NegativeScan<P>;
  const Tiled& t = p.tiled;
  const Scan scan(p);
  const OrderedPairs<P>& pairs = scan.pairs;
  const std::int64_t local = blockIdx.x % t.count, column_block = blockIdx.x / t.count;
  const std::int64_t tile = t.first + local;
  const std::int64_t end_of_block = (column_block + 1) * t.column_tiles_per_block;
  const std::int64_t end = end_of_block < pairs.column_tiles ? end_of_block : pairs.column_tiles;
  std::int64_t column = column_block * t.column_tiles_per_block;
  if (pairs.self && column < tile) column = tile;
  const Partials<Scalar> of_rows(t.row_hardest, t.row_sum, t.row_kept);
  const Partials<Scalar> of_columns(t.column_hardest, t.column_sum, t.column_kept);

  NegativeSum<Scalar> total;
  Greatest<Scalar> bound{-kInfinity<Scalar>};
  for (; column < end; ++column) {
    const bool mirrored = pairs.self && column > tile;
    NegativeSum<Scalar> own;
    if (!pairs.one_class(tile, column)) {
      const SimilarityTile<P> similarities(pairs, tile, column);
      const Scalar bar = scan.bar(tile, column);
      Any any{similarities.any([&](Scalar s) { return s > bar || !std::isfinite(s); })};
      any = block_reduce<kWarps<P>>(any, scan.any_smem, Any::either);
      if (any.value || writes_statistics(p)) {
        similarities.share();
        own = scan.own_sum(tile, column, mirrored);
        const Scalar found = own.log_sum(pairs.loss);  // of a bound, where options are numbers
        bound.value = found > bound.value ? found : bound.value;
      }
    }
    if (tile_half<P>() == 0)
      total.merge(own, scan.beta());
    else if (mirrored)
      of_columns.write((local * pairs.column_tiles + column) * kTile<P> + tile_index<P>(), own);
    if (t.weight_bounds && ((column + 1) % t.tiles_per_bound == 0 || column + 1 == end)) {
      __syncthreads();  // the smem may still be read for the bound before
      bound = block_reduce<kWarps<P>>(bound, scan.bound_smem, Greatest<Scalar>::greater);
      const std::int64_t bound_count =
          (pairs.column_tiles + t.tiles_per_bound - 1) / t.tiles_per_bound;
      if (threadIdx.x == 0)
        static_cast<Scalar*>(t.weight_bounds)[tile * bound_count + column / t.tiles_per_bound] =
            bound.value;
      bound.value = -kInfinity<Scalar>;
    }
  }
  if (tile_half<P>() == 0)
    of_rows.write((column_block * t.row_tiles_per_launch + local) * kTile<P> + tile_index<P>(),
                  total);
}

// One thread a row of the launch before and, in self mode, a column of it: adds the partial sums to
// what was there, in the order of columns.
template <class P>
MSK_KERNEL(kThreads<P>, 2)
merge_kernel(const MSK_PARAMETER Problem p) {
  using Scalar = typename P::Scalar;
  const Tiled& t = p.tiled;
  const OrderedPairs<P> pairs(p);
  const Scalar beta = learned_loss_of<Scalar>(p).beta;
  const Partials<Scalar> totals(p.row_buffers.hardest_negative, p.row_buffers.negative_sum,
                                p.row_buffers.neg_kept);
  const Partials<Scalar> of_rows(t.row_hardest, t.row_sum, t.row_kept);
  const Partials<Scalar> of_columns(t.column_hardest, t.column_sum, t.column_kept);
  const std::int64_t k = std::int64_t(blockIdx.x) * kThreads<P> + threadIdx.x, local = k / kTile<P>;
  const std::int64_t i = t.first * kTile<P> + k, tile = t.first + local;
  if (tile >= pairs.row_tiles) return;
  NegativeSum<Scalar> total = totals.read(i);
  if (pairs.self)
    for (std::int64_t above = 0; above < t.count && above < local; ++above)
      total.merge(of_columns.read(above * pairs.column_tiles * kTile<P> + i), beta);
  if (local < t.count) {
    const std::int64_t column_blocks =
        (pairs.column_tiles + t.column_tiles_per_block - 1) / t.column_tiles_per_block;
    for (std::int64_t column_block = pairs.self ? tile / t.column_tiles_per_block : 0;
         column_block < column_blocks; ++column_block)
      total.merge(
          of_rows.read((column_block * t.row_tiles_per_launch + local) * kTile<P> + i % kTile<P>),
          beta);
  }
  totals.write(i, total);
}

}  // namespace msk::gpu
