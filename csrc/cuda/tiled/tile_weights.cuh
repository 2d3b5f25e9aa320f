// Weights of the pairs of listed tiles, as the left operand of the gradient's product.
#pragma once

#include "cuda/core/half_range.cuh"
#include "cuda/tiled/negative_scan.cuh"
#include "cuda/tiled/tile_sums.cuh"

namespace msk::gpu {

// What a column's pairs ask of it, staged once a tile for all rows.
template <typename T>
struct alignas(16) ColumnTerm {
  T neg_threshold, neg_offset, dloss, scale;
  T pos_threshold, pos_offset, inverse_scale;

  MSK_DEVICE ColumnTerm(const Term<T>& term, T scale)
      : neg_threshold(term.neg_threshold),
        neg_offset(term.neg_offset),
        dloss(term.dloss),
        scale(scale),
        pos_threshold(term.pos_threshold),
        pos_offset(term.pos_offset),
        inverse_scale(T(1) / scale) {}
  MSK_DEVICE Term<T> term() const {
    return {neg_threshold, pos_threshold, neg_offset, pos_offset, dloss};
  }
};

template <class P>
struct TileWeights {
  using Scalar = typename P::Scalar;
  using Operand = typename P::Operand;
  using Tile = SimilarityTile<P>;
  using Column = ColumnTerm<Scalar>;
  static constexpr bool kScaled = kFewExponents<Operand>;
  // Weights replace the similarities; before they are scaled they lie beside them.
  static constexpr int kUnscaled = kScaled ? kTile<P> * Tile::kStride : 0;
  static_assert(Tile::kStageBytes % alignof(Column) == 0, "terms of columns are aligned");
  static constexpr std::size_t kSharedBytes =
      Tile::kStageBytes + kTile<P> * sizeof(Column) +
      (kTile<P> + (kScaled ? kThreads<P> : 0)) * sizeof(Scalar);
  static_assert(kSharedBytes <= kMostShared, "terms of columns fit beside the stages");

  const OrderedPairs<P> pairs;
  const bool by_row, by_column;
  Column* const columns;
  Scalar* const smem;

  MSK_DEVICE explicit TileWeights(const Problem& p)
      : pairs(p),
        by_row(p.terms & row_term),
        by_column(p.terms & column_term),
        columns(reinterpret_cast<Column*>(shared_memory() + Tile::kStageBytes)),
        smem(reinterpret_cast<Scalar*>(columns + kTile<P>)) {}

  MSK_DEVICE Term<Scalar> term_of(const Side<P>& side, bool weighs, std::int64_t i) const {
    return weighs && i < side.count ? side.term(i) : Term<Scalar>::nothing();
  }
  // By the first half of the block, once all have left the tile before.
  MSK_DEVICE void stage_columns(std::int64_t column_tile) const {
    if (tile_half<P>() == 1) return;
    const std::int64_t j = column_tile * kTile<P> + tile_index<P>();
    const Side<P>& side = pairs.columns;
    store_shared(columns + tile_index<P>(),
                 Column(term_of(side, by_column, j), j < side.count ? side.scale[j] : Scalar(1)));
  }
  // Of pair k of the thread's half row, with a similarity, in a tile of negatives.
  MSK_DEVICE static Scalar negative_weight(const MultiSimilarity<Scalar>& loss,
                                           const Term<Scalar>& row, const Column& column,
                                           Scalar s) {
    return (row.negative_weight(loss, s) + column.term().negative_weight(loss, s)) * column.scale;
  }
  MSK_DEVICE Scalar any_weight(const MultiSimilarity<Scalar>& loss, const Term<Scalar>& row,
                               const Column& column, std::int64_t i, std::int64_t j, bool apart,
                               Scalar s) const {
    if (!pairs.present(i, j)) return Scalar(0);
    const bool negative = apart || pairs.negative(i, j);
    const bool positive = !apart && pairs.positive(i, j, s);
    return (row.weight(loss, s, positive, negative) +
            column.term().weight(loss, s, positive, negative)) *
           column.scale;
  }
  // Rounds the weights of the thread's half row as the product reads them, in place of their
  // similarities, and returns their sum with those: of the rounded weights, so that the projection
  // takes out exactly what they put in.
  template <typename Weight>
  MSK_DEVICE Scalar round_weights(Weight weight) const {
    const int begin = tile_half<P>() * kHalfTile<P>;
    Scalar* const row = Tile::shared(tile_index<P>(), begin);
    Scalar dot = Scalar(0);
#pragma unroll 4
    for (int k = 0; k < kHalfTile<P>; ++k) {
      const Scalar s = load_shared(row + k);
      const Column column = load_shared(columns + begin + k);
      const Scalar rounded = P::as_read(narrow<Operand>(weight(begin + k, column, s)));
      dot += rounded * (s * column.inverse_scale);
      store_shared(row + k, rounded);
    }
    return dot;
  }
  // The same of float16, whose weights are first brought to a scale of their row: returns it.
  template <typename Weight>
  MSK_DEVICE Scalar scale_of(Weight weight) const {
    const int begin = tile_half<P>() * kHalfTile<P>;
    Scalar* const row = Tile::shared(tile_index<P>(), begin);
    Scalar most = Scalar(0);
#pragma unroll 4
    for (int k = 0; k < kHalfTile<P>; ++k) {
      const Scalar found =
          weight(begin + k, load_shared(columns + begin + k), load_shared(row + k));
      store_shared(row + k + kUnscaled, found);
      most = std::fmax(most, std::fabs(found));
    }
    store_shared(smem + kTile<P> + threadIdx.x, most);
    __syncthreads();
    const Scalar other = load_shared(smem + kTile<P> + (threadIdx.x ^ kTile<P>));
    return weight_scale_of(std::fmax(most, other));
  }
  struct Done {
    Scalar dot, weight_scale;
  };
  template <typename Weight>
  MSK_DEVICE Done weigh(Weight weight) const {
    if constexpr (kScaled) {
      const Scalar weight_scale = scale_of(weight);
      const Scalar dot = round_weights([&](int k, const Column&, Scalar) {
        return load_shared(Tile::shared(tile_index<P>(), k) + kUnscaled) * weight_scale;
      });
      return {dot, weight_scale};
    } else {
      return {round_weights(weight), Scalar(1)};
    }
  }
  // 16 bytes a thread; neighbouring threads write neighbouring weights.
  MSK_DEVICE static void write(Operand* out) {
    constexpr int kWide = 16 / sizeof(Operand), kAcross = kTile<P> / kWide;
#pragma unroll 1
    for (int k = threadIdx.x; k < kTile<P> * kAcross; k += kThreads<P>) {
      const int row = k / kAcross, column = k % kAcross * kWide;
      Operand wide[kWide];
#pragma unroll
      for (int e = 0; e < kWide; ++e)
        wide[e] = narrow<Operand>(load_shared(Tile::shared(row, column + e)));
      store_16(out + row * (kSegment * kTile<P>)+column, wide);
    }
  }
};

// One block takes a tile of rows of the panel and some of its listed tiles. Weights include the
// scale of their column, so that they multiply copies, and that of the weights of their row of the
// tile. `learns`: options do, and what weights add up to may be wanted.
template <class P, bool learns>
MSK_DEVICE void weigh_tiles(const Problem& p) {
  using Scalar = typename P::Scalar;
  using Weights = TileWeights<P>;
  using Column = typename Weights::Column;
  const Tiled& t = p.tiled;
  const Weights weights(p);
  const OrderedPairs<P>& pairs = weights.pairs;
  Scalar* const smem = weights.smem;
  // Tiles are counted in 32 bits, as their lists are.
  const int local = int(blockIdx.x % t.count), first_listed = int(t.first_listed);
  const int first = first_listed + int(blockIdx.x / t.count) * kListedPerBlock;
  const int listed = t.counts[local], most = first + kListedPerBlock;
  const int end = listed < most ? listed : most;
  if (first >= end) return;
  const std::int64_t tile = t.first + local;
  const std::int64_t i = tile * kTile<P> + tile_index<P>();
  const Term<Scalar> row = weights.term_of(pairs.rows, weights.by_row, i);
  [[maybe_unused]] WeightSums total{};
  for (int entry = first; entry < end; ++entry) {
    const std::int64_t column_tile = t.tiles[local * t.width + entry];
    weights.stage_columns(column_tile);
    SimilarityTile<P>(pairs, tile, column_tile).share();
    // Options that learn are not kept while products are taken.
    const auto& loss = loss_in<Scalar>(p, std::bool_constant<learns>());
    typename Weights::Done done;
    [[maybe_unused]] HalfRowSums<Scalar> sums{};
    if (pairs.interior(tile, column_tile)) {
      done = weights.weigh([&](int, const Column& column, Scalar s) {
        if constexpr (learns) {
          if (p.row_sums) sums.add(loss, weights.by_row ? row : column.term(), s, false, true);
        }
        return Weights::negative_weight(loss, row, column, s);
      });
    } else {
      const bool apart = pairs.apart(tile, column_tile);
      done = weights.weigh([&](int k, const Column& column, Scalar s) {
        const std::int64_t j = column_tile * kTile<P> + k;
        if constexpr (learns) {
          if (p.row_sums && pairs.present(i, j))
            sums.add(loss, weights.by_row ? row : column.term(), s,
                     !apart && pairs.positive(i, j, s), apart || pairs.negative(i, j));
        }
        return weights.any_weight(loss, row, column, i, j, apart, s);
      });
    }
    if constexpr (learns) total = WeightSums::plus(total, sums.widened());
    if (tile_half<P>() == 1) store_shared(smem + tile_index<P>(), done.dot);
    __syncthreads();
    if (tile_half<P>() == 0) {
      const std::int64_t at =
          ((entry - first_listed) * t.panel + local) * kTile<P> + tile_index<P>();
      const Scalar inverse_weight_scale = Scalar(1) / done.weight_scale;
      static_cast<Scalar*>(t.dots)[at] =
          (done.dot + load_shared(smem + tile_index<P>())) * inverse_weight_scale;
      if (Weights::kScaled)
        static_cast<Scalar*>(t.inverse_weight_scales)[at] = inverse_weight_scale;
    }
    Weights::write(static_cast<typename P::Operand*>(t.weights) +
                   (std::int64_t(local) * kTile<P> * kSegment + entry - first_listed) * kTile<P>);
  }
  if constexpr (learns) {
    static_assert(kWarps<P> * sizeof(WeightSums) <= kTile<P> * sizeof(Scalar), "sums fit");
    if (!p.row_sums) return;
    __syncthreads();  // the smem may still be read for the last tile
    auto* const sums_smem = reinterpret_cast<WeightSums*>(smem);
    total = block_reduce<kWarps<P>>(total, sums_smem, WeightSums::plus);
    if (threadIdx.x == 0)
      static_cast<WeightSums*>(t.list_sums)[blockIdx.x / t.count * t.panel + local] = total;
  }
}

template <class P>
MSK_KERNEL(kThreads<P>, kResident<P>)
tile_weights_kernel(const MSK_PARAMETER Problem p) {
  weigh_tiles<P, false>(p);
}
// Where operands are rounded as they are read, options need more registers than a third block
// leaves.
template <class P>
constexpr int kResidentLearning = sizeof(typename P::Operand) == 4 ? 2 : kResident<P>;

template <class P>
MSK_KERNEL(kThreads<P>, kResidentLearning<P>)
learned_weights_kernel(const MSK_PARAMETER Problem p) {
  weigh_tiles<P, true>(p);
}

}  // namespace msk::gpu
