// dl/dS of the kept pairs of a tile, times the incoming gradients of their rows.
#pragma once

#include "ranked_weights.h"
#include "similarity.h"

namespace msk::MSK_ISA {

// What a row asks of a kind, one array each; of a tile they start at its first row.
template <typename T>
struct Asked {
  Bounds<T> bounds;
  const T *factor, *constant;  // of negatives there is no constant: null

  Asked(const Side<T>& side, std::int64_t at, bool negative)
      : bounds(negative
                   ? Bounds<T>{side.neg_above + at, side.neg_below + at, side.neg_offset + at}
                   : Bounds<T>{side.pos_above + at, side.pos_below + at, side.pos_offset + at}),
        factor((negative ? side.neg_factor : side.pos_factor) + at),
        constant(negative ? nullptr : side.pos_constant + at) {}
};

// Weights of one kind of pair in one tile, as derivatives with respect to their values. Of a
// log-sum a side's factor is factor exp(most - offset), so that both sides share one exponential
// when their offsets lie close together. Exponents are rounded as in the log-sum-exps: they cancel.
template <typename T, Shape shape, bool general>
class KindWeights {
 public:
  KindWeights(const Form<T>& form, const Asked<T>& row, int rows, const Asked<T>& column,
              int columns, T* row_room, T* column_room)
      : form_(form), row_(row), column_(column) {
    T least = kInfinity<T>;
    const auto span = [&](const T* offset, int count) {
      for (int i = 0; i < count; ++i)
        if (offset[i] < kInfinity<T>) {
          least = offset[i] < least ? offset[i] : least;
          most_ = offset[i] > most_ ? offset[i] : most_;
        }
    };
    span(row.bounds.offset, rows);
    span(column.bounds.offset, columns);
    if constexpr (!Shaped::log_sum) {
      same_offsets_ = !(most_ > T(0)) && !(least < T(0));  // all of them 0
      return;
    }
    shared_ = !(most_ - least > kSharedSpread<T>);
    if (!shared_) return;
    row_.factor = scaled(row, rows, row_room);
    column_.factor = scaled(column, columns, column_room);
  }

  // Of a vector of pairs, `column` and so on of its own; sets the kept ones.
  Vec<T> operator()(Vec<T> value, int r, int c, Mask<T>& kept) const {
    return weight(value, spread(row_, r), at(column_, c), kept);
  }
  // Of pairs from anywhere in the tile.
  Vec<T> operator()(const Pair<T>* pairs, int filled) const {
    T value[kLanes<T>];
    Gathered row, column;
    for (int i = 0; i < kLanes<T>; ++i) {
      const Pair<T>& p = pairs[i < filled ? i : 0];
      value[i] = p.value;
      row.read(row_, p.row, i);
      column.read(column_, p.column, i);
    }
    Mask<T> kept;
    return weight(load(value), row.all(), column.all(), kept);
  }

 private:
  using Shaped = VectorForm<T, shape>;
  struct Anchor {
    Vec<T> above, below, offset, factor, constant;
  };
  struct Gathered {
    T above[kLanes<T>], below[kLanes<T>] = {}, offset[kLanes<T>], factor[kLanes<T>];
    void read(const Asked<T>& from, int at, int lane) {
      above[lane] = from.bounds.above[at];
      offset[lane] = from.bounds.offset[at];
      factor[lane] = from.factor[at];
      if (general) below[lane] = from.bounds.below[at];
    }
    // Only negatives are listed, and those have no constant.
    Anchor all() const { return {load(above), load(below), load(offset), load(factor), Vec<T>{}}; }
  };
  static Anchor spread(const Asked<T>& a, int r) {
    return {broadcast(a.bounds.above[r]), general ? broadcast(a.bounds.below[r]) : Vec<T>{},
            broadcast(a.bounds.offset[r]), broadcast(a.factor[r]),
            a.constant ? broadcast(a.constant[r]) : Vec<T>{}};
  }
  static Anchor at(const Asked<T>& a, int c) {
    return {load(a.bounds.above + c), general ? load(a.bounds.below + c) : Vec<T>{},
            load(a.bounds.offset + c), load(a.factor + c),
            a.constant ? load(a.constant + c) : Vec<T>{}};
  }

  Vec<T> weight(Vec<T> value, const Anchor& row, const Anchor& column, Mask<T>& kept) const {
    Mask<T> by_row = value > row.above, by_column = value > column.above;
    if (general) {
      by_row &= value < row.below;
      by_column &= value < column.below;
    }
    kept = by_row | by_column;
    Vec<T> of_row, of_column;
    if constexpr (Shaped::log_sum) {
      const Vec<T> z = form_.exponent(value);
      if (shared_) {
        of_row = of_column = exp<T>(z - broadcast(most_));
      } else {
        of_row = exp<T>(z - row.offset);
        of_column = exp<T>(z - column.offset);
      }
    } else {
      // A row that weighs nothing has an infinite offset, which is not for the other side.
      of_row = of_column = form_.add(value, same_offsets_ ? Vec<T>{} : row.offset).slope;
      if (!same_offsets_) of_column = form_.add(value, column.offset).slope;
    }
    if constexpr (Shaped::log_sum) {
      of_row *= row.factor;
      of_column *= column.factor;
    } else {  // selected: a pair without slope weighs nothing whatever its anchor's factor
      of_row = of_row > T(0) ? of_row * row.factor : Vec<T>{};
      of_column = of_column > T(0) ? of_column * column.factor : Vec<T>{};
    }
    if constexpr (shape == Shape::circle) {
      const Vec<T> a = form_.factor(value);
      of_row *= a;
      of_column *= a;
    }
    if (general) {  // else no kind has one
      of_row += row.constant;
      of_column += column.constant;
    }
    return (by_row ? of_row : Vec<T>{}) + (by_column ? of_column : Vec<T>{});
  }

  const T* scaled(const Asked<T>& a, int count, T* room) const {
    for (int i = 0; i < count; i += kLanes<T>)
      store(room + i, load(a.factor + i) * exp<T>(broadcast(most_) - load(a.bounds.offset + i)));
    return room;
  }

  Shaped form_;
  Asked<T> row_, column_;
  T most_ = T(0);
  bool shared_ = false, same_offsets_ = false;
};

// dl/dS of the pairs of one tile.
template <typename T>
class TileWeights {
 public:
  TileWeights(const Side<T>& rows, const Side<T>& columns, Tile t, const PairLoss<T>& loss,
              const Scratch<T>& scratch)
      : rows_(rows), columns_(columns), tile_(t), loss_(loss), scratch_(scratch) {}

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
        const Vec<T> weight = negative(pairs + k, filled);
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
    for (int r = 0; r < tile.rows; ++r)
      for (int v = 0; v < tile.vectors(); ++v) {
        const int c = v * kLanes<T>;
        const std::int64_t at = std::int64_t(r) * tile.stride + c;
        const Vec<T> s = load(tile.similarity + at);
        const PairMask<T> pairs = tile.pairs(r, v, s);
        Mask<T> pushed;
        Vec<T> weight = negative(s, r, c, pushed);
        pushed &= pairs.negative;
        weight = pushed ? weight : Vec<T>{};
        if (positives) {
          Mask<T> pulled;
          const Vec<T> pull = sign * positive(sign * s, r, c, pulled);
          pulled &= pairs.positive;
          weight = pulled ? pull : weight;
          pushed |= pulled;
        }
        store(out + at, weight);
        kept += __builtin_popcount(bits<T>(pushed));
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
  const Scratch<T>& scratch_;
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
