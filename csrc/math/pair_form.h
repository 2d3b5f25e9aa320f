// How the pairs of an anchor enter a loss: what is summed over them, and what one of them weighs.
//
// A pair has a value: S for a negative, sign S for a positive. With sign -1 harder pairs have
// greater values in both kinds.
#pragma once

#include "softplus.h"

namespace msk {

// Summed over kept pairs, and what a pair then weighs in units of its term's coefficient:
//   exponential  log sum exp(z),   exp(z - offset),           z = scale (value - base)
//   circle       log sum exp(z),   a exp(z - offset),         z = a (value - base - margin),
//                                                             a = scale max(0, value - base +
//                                                             margin)
//   sigmoid      sum softplus(z),  sigmoid(z),                z = scale (value - base) - offset
//   hinge        sum max(0, z),    1 where z >= 0, else 0,    z = value - base
enum class Shape { exponential, circle, sigmoid, hinge };

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
  T moment;  // over kept positives: of an exponential form sum value, of a sigmoid sum sigmoid(z)
  T pos_kept, neg_kept;
};

// A kept pair of one kind weighs coefficient (its form's weight) + constant, as dl/d(value).
template <typename T>
struct KindTerm {
  T coefficient, offset;
  T constant = T(0);
};

template <typename T>
struct RowTerm {
  T loss;
  KindTerm<T> negative, positive;
};

template <typename T>
constexpr T kNever = std::numeric_limits<T>::infinity();

// A kind without weight: its exponents vanish.
template <typename T>
MSK_HOST_DEVICE inline KindTerm<T> no_term() {
  return {T(0), kNever<T>};
}

// Of an empty sum nothing can weigh, and its offset may be infinite.
template <typename T>
MSK_HOST_DEVICE inline KindTerm<T> term_if(bool some, T coefficient, T offset, T constant = T(0)) {
  return some ? KindTerm<T>{coefficient, offset, constant} : no_term<T>();
}

template <typename T>
MSK_HOST_DEVICE inline T at_least_one(T count) {
  return count > T(1) ? count : T(1);
}

}  // namespace msk
