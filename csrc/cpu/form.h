// The forms of rules/form.h for vectors of pairs.
#pragma once

#include "../rules/pair_loss.h"
#include "exp.h"

namespace msk::MSK_ISA {

// log(1 + e) for 0 <= e <= 1: the series of 2 artanh(t) at t = e / (2 + e) <= 1/3. The terms left
// out are under (1/9)^8 / 17 = 2e-9 and (1/9)^17 / 35 = 2e-18 of the sum.
template <typename T>
inline Vec<T> log1p(Vec<T> e) {
  const Vec<T> t = e / (e + T(2)), square = t * t;
  constexpr int terms = sizeof(T) == 8 ? 17 : 8;
  Vec<T> sum = broadcast(T(1) / (2 * terms - 1));
#pragma GCC unroll 16
  for (int k = terms - 2; k >= 0; --k)
    sum = multiply_add<T>(sum, square, broadcast(T(1) / (2 * k + 1)));
  return (t + t) * sum;
}

template <typename T>
inline Vec<T> positive_part(Vec<T> x) {
  return x > T(0) ? x : Vec<T>{};
}

template <typename T>
struct MassAndSlope {
  Vec<T> mass, slope;
};

template <typename T, Shape shape>
struct VectorForm : Form<T> {
  explicit VectorForm(const Form<T>& form) : Form<T>(form) {}

  static constexpr Shape kShape = shape;
  static constexpr bool log_sum = shape == Shape::exponential || shape == Shape::circle;

  // Of log-sums: z of a value less z of a reference, which is at least as great as z of any value
  // up to the reference. A circle's z falls to -scale margin^2 where its factor has left 0, and
  // overflows long before the similarities do: an infinite z less another would be NaN.
  Vec<T> relative(Vec<T> value, Vec<T> reference) const {
    if constexpr (shape == Shape::circle)
      return bounded(exponent(value)) - bounded(positive_part<T>(exponent(reference)));
    return this->scale * (value - reference);
  }
  // The same where the value was a reference itself.
  Vec<T> relative_to_hardest(Vec<T> value, Vec<T> reference) const {
    if constexpr (shape == Shape::circle)
      return bounded(positive_part<T>(exponent(value))) -
             bounded(positive_part<T>(exponent(reference)));
    return relative(value, reference);
  }
  // Of one pair the sum may have gone from reference to reference: it is known without.
  T log_of_sum(T reference, T sum, std::int64_t kept) const {
    if (kept == 1) return exponent_of<T>(*this, reference);
    if constexpr (shape == Shape::circle) {
      const T z = circle(reference - this->base);
      return (z > T(0) ? z : T(0)) + std::log(sum);
    }
    return this->scale * (reference - this->base) + std::log(sum);
  }
  // Whether values from least to most may share one reference: see kSharedSpread.
  T spread(T least, T most) const {
    if constexpr (shape == Shape::circle) {
      const T z_least = circle(least - this->base), z_most = circle(most - this->base);
      return (z_most > T(0) ? z_most : T(0)) - (z_least > T(0) ? z_least : T(0));
    }
    return this->scale * (most - least);
  }
  Vec<T> exponent(Vec<T> value) const {
    const Vec<T> u = value - broadcast(this->base);
    if constexpr (shape == Shape::circle)
      return this->scale * positive_part<T>(u + broadcast(this->margin)) *
             (u - broadcast(this->margin));
    return this->scale * u;
  }
  // What a log-sum's weight is multiplied with besides its exponential.
  Vec<T> factor(Vec<T> value) const {
    return this->scale * positive_part<T>(value - broadcast(this->base - this->margin));
  }

  // Of plain sums: what a pair adds, and its derivative with respect to z.
  MassAndSlope<T> add(Vec<T> value, Vec<T> offset) const {
    if constexpr (shape == Shape::hinge) {
      const Vec<T> z = value - broadcast(this->base);
      return {positive_part<T>(z), z >= T(0) ? broadcast(T(1)) : Vec<T>{}};
    }
    const Vec<T> z = this->scale * (value - broadcast(this->base)) - offset;
    const Vec<T> e = exp<T>(z > T(0) ? -z : z);
    return {positive_part<T>(z) + log1p<T>(e), (z > T(0) ? broadcast(T(1)) : e) / (e + T(1))};
  }

  // Where a pair may weigh anything at all.
  Mask<T> active(Vec<T> value) const {
    if constexpr (shape == Shape::hinge) return value >= this->base;
    return value == value;
  }

 private:
  static Vec<T> bounded(Vec<T> z) {
    constexpr T most = std::numeric_limits<T>::max();
    return z < most ? z : broadcast(most);
  }
  T circle(T u) const {
    const T a = u + this->margin;
    return this->scale * (a > T(0) ? a : T(0)) * (u - this->margin);
  }
};

// visit(form) with the shape as a type.
template <typename T, typename Visit>
void with_shape(const Form<T>& form, Visit visit) {
  switch (form.shape) {
    case Shape::exponential:
      return visit(VectorForm<T, Shape::exponential>(form));
    case Shape::circle:
      return visit(VectorForm<T, Shape::circle>(form));
    case Shape::sigmoid:
      return visit(VectorForm<T, Shape::sigmoid>(form));
    case Shape::hinge:
    case Shape::ranked:  // sums are joined as any plain ones; ranked_scan.h makes them
      return visit(VectorForm<T, Shape::hinge>(form));
  }
}

}  // namespace msk::MSK_ISA
