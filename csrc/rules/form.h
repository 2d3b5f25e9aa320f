// How the pairs of an anchor enter a loss: what is summed over them, and what one of them weighs.
//
// A pair has a value: S for a negative, sign S for a positive. With sign -1 harder pairs have
// greater values in both kinds.
#pragma once

#include "infinity.h"
#include "softplus.h"

namespace msk {

// Summed over kept pairs, and what a pair then weighs in units of its term's coefficient:
//   exponential  log sum exp(z),   exp(z - offset),           z = scale (value - base)
//   circle       log sum exp(z),   a exp(z - offset),         z = a (value - base - margin),
//                                                             a = scale max(0, value - base +
//                                                             margin)
//   sigmoid      sum softplus(z),  sigmoid(z),                z = scale (value - base) - offset
//   hinge        sum max(0, z),    1 where z >= 0, else 0,    z = value - base
//   ranked       a hinge for each listed base of the anchor; of a listed pair itself, how many
//                pairs of the other kind reach its base
enum class Shape { exponential, circle, sigmoid, hinge, ranked };

template <typename T>
struct Form {
  Shape shape;
  T scale, base;
  T margin = T(0);  // of a circle
  T sign = T(1);
};

// Of one anchor. An empty log-sum-exp is -inf, an empty sum 0.
template <typename T>
struct RowSums {
  T positive, negative;
  // Over kept positives: of an exponential form sum value, of a sigmoid sum sigmoid(z). Of ranked
  // pairs the number that reach a base.
  T moment;
  T pos_kept, neg_kept;
};

// A kept pair of one kind weighs coefficient (its form's weight), as dl/d(value).
template <typename T>
struct KindTerm {
  T coefficient, offset;
};

template <typename T>
struct RowTerm {
  T loss;
  KindTerm<T> negative, positive;
  T positive_constant = T(0);  // what a kept positive weighs besides
};

// A kind without weight: its exponents vanish, for 0 times one that overflows would be NaN.
template <typename T>
MSK_HOST_DEVICE inline KindTerm<T> no_term() {
  return {T(0), kInfinity<T>};
}

// Of an empty sum nothing can weigh, and its offset may be infinite.
template <typename T>
MSK_HOST_DEVICE inline KindTerm<T> term_if(bool some, T coefficient, T offset) {
  return some ? KindTerm<T>{coefficient, offset} : no_term<T>();
}

// A circle's a.
template <typename T>
MSK_HOST_DEVICE inline T circle_factor(const Form<T>& form, T value) {
  const T reach = value - form.base + form.margin;
  return form.scale * (reach > T(0) ? reach : T(0));
}

// z, without an offset.
template <typename T>
MSK_HOST_DEVICE inline T exponent_of(const Form<T>& form, T value) {
  const T u = value - form.base;
  if (form.shape == Shape::circle)
    return rounded_product(circle_factor(form, value), u - form.margin);
  return rounded_product(form.scale, u);
}

// z less the greatest of a sum, at most 0: also of two that overflow.
template <typename T>
MSK_HOST_DEVICE inline T below_peak(T z, T peak) {
  return z < peak ? z - peak : T(0);
}

template <typename T>
MSK_HOST_DEVICE inline bool is_log_sum(const Form<T>& form) {
  return form.shape == Shape::exponential || form.shape == Shape::circle;
}

template <typename T>
MSK_HOST_DEVICE inline T sigmoid(T z) {
  return T(1) / (T(1) + std::exp(-z));
}

// What a pair adds to a plain sum.
template <typename T>
MSK_HOST_DEVICE inline T summand(const Form<T>& form, T value, T offset) {
  const T z = exponent_of(form, value);
  switch (form.shape) {
    case Shape::sigmoid:
      return softplus(z - offset);
    case Shape::hinge:
      return z > T(0) ? z : T(0);
    case Shape::exponential:
    case Shape::circle:
    case Shape::ranked:  // their sums are no sums of this: whoever asks here is wrong
      break;
  }
  return kNaN<T>;
}

// What a kept pair weighs, as dl/d(value), without the constant of a positive.
template <typename T>
MSK_HOST_DEVICE inline T weight_of(const Form<T>& form, T value, const KindTerm<T>& term) {
  const T z = exponent_of(form, value);
  switch (form.shape) {
    case Shape::sigmoid:
      return term.coefficient * sigmoid(z - term.offset);
    case Shape::hinge:
      return z >= T(0) ? term.coefficient : T(0);
    case Shape::circle:
      return term.coefficient * circle_factor(form, value) * std::exp(z - term.offset);
    case Shape::exponential:
      return term.coefficient * std::exp(z - term.offset);
    case Shape::ranked:  // depends on more than the value: whoever asks here is wrong
      break;
  }
  return kNaN<T>;
}

// For an incoming gradient of the row's loss: what weighs nothing does not become NaN by it.
template <typename T>
MSK_HOST_DEVICE inline T times_dloss(T factor, T dloss) {
  return factor == T(0) ? T(0) : factor * dloss;
}
template <typename T>
MSK_HOST_DEVICE inline KindTerm<T> times_dloss(const KindTerm<T>& term, T dloss) {
  return {times_dloss(term.coefficient, dloss), term.offset};
}

template <typename T>
MSK_HOST_DEVICE inline T at_least_one(T count) {
  return count > T(1) ? count : T(1);
}

}  // namespace msk
