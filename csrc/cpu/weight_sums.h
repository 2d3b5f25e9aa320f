// What the weights of pairs add up to: the derivatives of options that learn follow from it.
#pragma once

#include "form.h"

namespace msk::MSK_ISA {

// Of positives, then of negatives: sum dl/dS and sum S dl/dS. Of a circle, whose scale and margin
// stand in a and z (rules/form.h): sum dl/dz where a is not 0, and sum (u - margin) dl/du.
struct WeightTotals {
  double of[4];
};

template <typename T>
class WeightSums {
 public:
  explicit WeightSums(const PairLoss<T>& loss) : loss_(loss) {}

  // Of a vector of pairs of one kind, with weights dl/dS; a pair that does not count weighs 0.
  void add(bool negative, Vec<T> s, Vec<T> weight) {
    const Form<T>& form = negative ? loss_.negative : loss_.positive;
    Vec<T>* into = sums_ + (negative ? 2 : 0);
    if (form.shape != Shape::circle) {
      into[0] += weight;
      into[1] = multiply_add<T>(weight, weight == T(0) ? Vec<T>{} : s, into[1]);
      return;
    }
    const Vec<T> u = form.sign * s - broadcast(form.base);
    const Vec<T> a = form.scale * positive_part<T>(u + broadcast(form.margin));
    const Vec<T> by_u = form.sign * weight;
    into[0] += a > T(0) ? by_u / a : Vec<T>{};
    into[1] += by_u == T(0) ? Vec<T>{} : by_u * (u - broadcast(form.margin));
  }

  WeightTotals totals() const {
    WeightTotals found;
    for (int k = 0; k < 4; ++k) {
      found.of[k] = 0;
      for (int lane = 0; lane < kLanes<T>; ++lane) found.of[k] += double(sums_[k][lane]);
    }
    return found;
  }

 private:
  const PairLoss<T>& loss_;
  Vec<T> sums_[4] = {};
};

}  // namespace msk::MSK_ISA
