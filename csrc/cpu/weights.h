// dl/dS of the kept pairs of a tile, times the incoming gradients of their rows.
#pragma once

#include "kind_weights.h"
#include "ranked_weights.h"
#include "weight_sums.h"

namespace msk::MSK_ISA {

// What dl/dS of a pair is on the product of its rows, or on their difference: a distance's dS/dx is
// 2 (r - x), or (r - x) / |r - x|, which has no direction at 0.
template <typename T>
inline Vec<T> through_distance(Distance distance, Vec<T> weight, Vec<T> s) {
  if (distance == Distance::euclidean) return s < T(0) ? weight / -s : Vec<T>{};
  return distance == Distance::none ? weight : weight + weight;
}

// dl/dS of the pairs of one tile, through what S is of their rows.
template <typename T>
class TileWeights {
 public:
  TileWeights(const Side<T>& rows, const Side<T>& columns, Tile t, const PairLoss<T>& loss,
              Distance distance, const Scratch<T>& scratch, WeightSums<T>* sums)
      : rows_(rows),
        columns_(columns),
        tile_(t),
        loss_(loss),
        distance_(distance),
        scratch_(scratch),
        sums_(sums) {}

  // Of a whole tile; `out` may be the similarities themselves. Returns the number of kept pairs.
  std::int32_t weigh(const TileView<T>& tile, bool positives, T* out) const {
    std::int32_t kept = 0;
    each_kind([&](auto negative, auto positive) {
      kept = weigh(tile, positives, negative, positive, out);
    });
    return kept;
  }

  // Of listed negatives, in place of their similarities.
  void weigh(Pair<T>* pairs, std::int32_t count) const {
    each_kind([&](auto negative, auto) {
      for (std::int32_t k = 0; k < count; k += kLanes<T>) {
        const int filled = count - k < kLanes<T> ? count - k : kLanes<T>;
        Vec<T> s = {};
        for (int i = 0; i < filled; ++i) s[i] = pairs[k + i].value;
        Vec<T> weight = negative(pairs + k, filled);
        if (sums_) sums_->add(true, s, weight, pairs + k, filled);
        weight = through_distance<T>(distance_, weight, s);
        for (int i = 0; i < filled; ++i) pairs[k + i].value = weight[i];
      }
    });
  }

 private:
  template <class Negative, class Positive>
  std::int32_t weigh(const TileView<T>& tile, bool positives, const Negative& negative,
                     const Positive& positive, T* out) const {
    std::int32_t kept = 0;
    const T sign = loss_.positive.sign;
    for (int r = 0; r < tile.rows; ++r) {
      for (int v = 0; v < tile.vectors(); ++v) {
        const int c = v * kLanes<T>;
        const std::int64_t at = std::int64_t(r) * tile.stride + c;
        const Vec<T> s = load(tile.similarity + at);
        const PairMask<T> pairs = tile.pairs(r, v, s);
        Mask<T> pushed;
        Vec<T> weight = negative(s, r, c, pushed);
        pushed &= pairs.negative;
        weight = pushed ? weight : Vec<T>{};
        if (sums_) sums_->add(true, s, weight);
        if (positives) {
          Mask<T> pulled;
          const Vec<T> pull = sign * positive(sign * s, r, c, pulled);
          pulled &= pairs.positive;
          if (sums_) sums_->add(false, s, pulled ? pull : Vec<T>{});
          weight = pulled ? pull : weight;
          pushed |= pulled;
        }
        store(out + at, through_distance<T>(distance_, weight, s));
        kept += __builtin_popcount(bits<T>(pushed));
      }
      if (sums_) sums_->end_row();
    }
    return kept;
  }

  // visit(negative, positive) with their forms as types.
  template <class Visit>
  void each_kind(Visit visit) const {
    if (!loss_.general) {
      visit(kind<Shape::exponential, false>(true), kind<Shape::exponential, false>(false));
      return;
    }
    if (loss_.ranked()) {
      visit(RankedNegatives<T>{ask(rows_, columns_, true, false), ask(columns_, rows_, true, true)},
            RankedPositives<T>{ask(rows_, columns_, false, false),
                               ask(columns_, rows_, false, true)});
      return;
    }
    with_shape<T>(loss_.negative, [&](auto negative) {
      with_shape<T>(loss_.positive, [&](auto positive) {
        visit(kind<negative.kShape, true>(true), kind<positive.kShape, true>(false));
      });
    });
  }

  template <Shape shape, bool general>
  KindWeights<T, shape, general> kind(bool negative) const {
    const int room = negative ? 0 : 2;
    return {negative ? loss_.negative : loss_.positive,
            Asked<T>(rows_, rows_.first(tile_.row), negative),
            rows_.axis.block,
            Asked<T>(columns_, columns_.first(tile_.column), negative),
            columns_.axis.block,
            scratch_.small(room),
            scratch_.small(room + 1)};
  }

  RankedAsk<T> ask(const Side<T>& side, const Side<T>& other, bool negative, bool columns) const {
    const std::int64_t at = side.first(columns ? tile_.column : tile_.row);
    const Asked<T> asked(side, at, negative);
    return {asked.bounds.above, asked.bounds.below, asked.factor, side.ranks.block_at(at),
            other.first(columns ? tile_.row : tile_.column)};
  }

  const Side<T>& rows_;
  const Side<T>& columns_;
  Tile tile_;
  const PairLoss<T>& loss_;
  Distance distance_;
  const Scratch<T>& scratch_;
  WeightSums<T>* sums_;  // null: not wanted
};

// Lists the weights of a tile that are not 0, row by row; returns their number.
template <typename T>
std::int32_t list_weights(const T* weights, int stride, int rows, int vectors, Pair<T>* out) {
  std::int32_t count = 0;
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vectors; ++v) {
      const int c = v * kLanes<T>;
      const T* at = weights + std::int64_t(r) * stride + c;
      for (std::uint32_t lanes = bits<T>(load(at) != T(0)); lanes; lanes &= lanes - 1) {
        const int lane = __builtin_ctz(lanes);
        out[count++] = {at[lane], std::uint8_t(r), std::uint8_t(c + lane), 0};
      }
    }
  return count;
}

template <typename T>
void sort_by_column(Pair<T>* pairs, std::int32_t count, int columns) {
  std::uint16_t place[257] = {};
  for (std::int32_t k = 0; k < count; ++k) ++place[pairs[k].column + 1];
  for (int c = 1; c <= columns; ++c) place[c] += place[c - 1];
  for (std::int32_t k = 0; k < count; ++k) pairs[place[pairs[k].column]++].by_column = k;
}

}  // namespace msk::MSK_ISA
