// dl/d(value) of one kind of pair in a tile, for the forms that a row knows by a few numbers.
#pragma once

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

}  // namespace msk::MSK_ISA
