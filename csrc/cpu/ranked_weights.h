// dl/dS of the triplet loss: how many partners a pair violates the margin with.
#pragma once

#include "cells.h"
#include "ranks.h"

namespace msk::MSK_ISA {

// Of one kind of pair: bounds of what rows and columns keep, their factors and lists, from the
// first of the tile.
template <typename T>
struct RankedAsk {
  const T *above, *below, *factor;
  RankBlock<T> ranks;
  std::int64_t other_first;  // of the tile's other side

  Mask<T> keeps(Vec<T> value, int anchor) const {
    return (value > broadcast(above[anchor])) & (value < broadcast(below[anchor]));
  }
  Mask<T> keep(Vec<T> value, int anchors) const {
    return (value > load(above + anchors)) & (value < load(below + anchors));
  }
};

// A pair without weight weighs nothing whatever the factor of its anchor.
template <typename T>
inline T weighed(Code<T> number, T factor) {
  return number ? T(number) * factor : T(0);
}
template <typename T>
inline Vec<T> weighed(Mask<T> number, Vec<T> factor) {
  return number != 0 ? __builtin_convertvector(number, Vec<T>) * factor : Vec<T>{};
}

// Of negatives: thresholds that they reach.
template <typename T>
struct RankedNegatives {
  RankedAsk<T> row, column;

  Vec<T> operator()(Vec<T> s, int r, int c, Mask<T>& kept) const {
    const Mask<T> by_row = row.keeps(s, r), by_column = column.keep(s, c);
    kept = by_row | by_column;
    Mask<T> of_row = {}, of_column = {};
    for (int k = 0; k < row.ranks.slots; ++k)
      of_row -= s >= broadcast(row.ranks.threshold[row.ranks.at(k, r)]);
    for (int k = 0; k < column.ranks.slots; ++k)
      of_column -= s >= load(column.ranks.threshold + column.ranks.at(k, c));
    return weighed<T>(of_row & by_row, broadcast(row.factor[r])) +
           weighed<T>(of_column & by_column, load(column.factor + c));
  }
  // Of pairs from anywhere in the tile.
  Vec<T> operator()(const Pair<T>* pairs, int filled) const {
    Vec<T> weight = {};
    for (int i = 0; i < filled; ++i)
      weight[i] =
          of(row, pairs[i].value, pairs[i].row) + of(column, pairs[i].value, pairs[i].column);
    return weight;
  }

 private:
  static T of(const RankedAsk<T>& ask, T s, int anchor) {
    if (!(s > ask.above[anchor] && s < ask.below[anchor])) return T(0);
    Code<T> number = 0;
    for (int k = 0; k < ask.ranks.slots; ++k)
      number += s >= ask.ranks.threshold[ask.ranks.at(k, anchor)];
    return weighed<T>(number, ask.factor[anchor]);
  }
};

// Of positives, whose values are -S: negatives that reach their threshold.
template <typename T>
struct RankedPositives {
  RankedAsk<T> row, column;

  Vec<T> operator()(Vec<T> value, int r, int c, Mask<T>& kept) const {
    const Mask<T> by_row = row.keeps(value, r), by_column = column.keep(value, c);
    kept = by_row | by_column;
    Vec<T> weight = {};
    for (std::uint32_t lanes = bits<T>(kept); lanes; lanes &= lanes - 1) {
      const int lane = __builtin_ctz(lanes);
      T sum = T(0);
      if (by_row[lane]) sum += of(row, r, c + lane);
      if (by_column[lane]) sum += of(column, c + lane, r);
      weight[lane] = sum;
    }
    return weight;
  }

 private:
  static T of(const RankedAsk<T>& ask, int anchor, int other) {
    if (!ask.ranks.slots) return T(0);
    const std::int64_t slot = ask.ranks.slot(anchor, ask.other_first + other);
    if (!ask.ranks.has(slot)) return T(0);
    return weighed<T>(ask.ranks.reached[ask.ranks.at(slot, anchor)], ask.factor[anchor]);
  }
};

}  // namespace msk::MSK_ISA
