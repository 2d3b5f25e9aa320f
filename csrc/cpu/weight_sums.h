// What the weights of pairs add up to: the derivatives of options that learn follow from it.
#pragma once

#include "cells.h"
#include "form.h"

namespace msk::MSK_ISA {

// Of positives, then of negatives: sum dl/dS and sum (S - base) dl/dS, which lose nothing where all
// similarities lie close to the base. Of a circle, whose scale and margin stand in a and z
// (rules/form.h): sum dl/dz where a is not 0, and sum (u - margin) dl/du.
struct WeightTotals {
  double of[4];
};

template <typename T>
class WeightSums {
 public:
  explicit WeightSums(const PairLoss<T>& loss) : loss_(loss) {}

  // Of a vector of pairs of one kind, with weights dl/dS; a pair that does not count weighs 0.
  void add(bool negative, Vec<T> s, Vec<T> weight) {
    const Summands found = summands(negative, s, weight);
    Vec<T>* into = of_row_ + (negative ? 2 : 0);
    into[0] += found.first;
    into[1] += found.second;
  }
  // Behind the pairs of a row. In double from here on: of a tile's thousands of almost equal
  // weights a float32 sum would be off by one in 10^5.
  void end_row() {
    for (int k = 0; k < 4; ++k)
      for (int lane = 0; lane < kLanes<T>; ++lane) lanes_[k][lane] += double(of_row_[k][lane]);
    for (int k = 0; k < 4; ++k) of_row_[k] = Vec<T>{};
  }
  // The same of listed pairs, each in the lane that it has in its tile: who lists its pairs and who
  // goes through the tile come to the same bits, for lists go row by row.
  void add(bool negative, Vec<T> s, Vec<T> weight, const Pair<T>* pairs, int filled) {
    const Summands found = summands(negative, s, weight);
    Vec<T>* into = of_row_ + (negative ? 2 : 0);
    for (int i = 0; i < filled; ++i) {
      if (pairs[i].row != row_) end_row();
      row_ = pairs[i].row;
      const int lane = pairs[i].column % kLanes<T>;
      into[0][lane] += found.first[i];
      into[1][lane] += found.second[i];
    }
  }

  WeightTotals totals() {
    end_row();
    WeightTotals found;
    for (int k = 0; k < 4; ++k) {
      found.of[k] = 0;
      for (int lane = 0; lane < kLanes<T>; ++lane) found.of[k] += lanes_[k][lane];
    }
    return found;
  }

 private:
  struct Summands {
    Vec<T> first, second;
  };
  Summands summands(bool negative, Vec<T> s, Vec<T> weight) const {
    const Form<T>& form = negative ? loss_.negative : loss_.positive;
    const Vec<T> u = form.sign * s - broadcast(form.base), by_u = form.sign * weight;
    if (form.shape != Shape::circle) return {weight, weight == T(0) ? Vec<T>{} : by_u * u};
    const Vec<T> a = form.scale * positive_part<T>(u + broadcast(form.margin));
    return {a > T(0) ? by_u / a : Vec<T>{},
            by_u == T(0) ? Vec<T>{} : by_u * (u - broadcast(form.margin))};
  }

  const PairLoss<T>& loss_;
  Vec<T> of_row_[4] = {};
  double lanes_[4][kLanes<T>] = {};
  int row_ = 0;  // of the pair that was listed last
};

}  // namespace msk::MSK_ISA
