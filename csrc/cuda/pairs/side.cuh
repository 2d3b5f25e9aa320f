// One side of the pairs, as the phases of a launch see it.
#pragma once

#include <limits>

#include "cuda/core/product.cuh"
#include "cuda/pairs/distance.cuh"
#include "cuda/pairs/learned.cuh"
#include "cuda/pairs/problem.h"
#include "rules/pair_loss.h"

namespace msk::gpu {

// Between 1 and the next number.
template <typename T>
constexpr T kUlp = std::numeric_limits<T>::epsilon();

// What one side adds to the weight of its pairs.
template <typename T>
struct Term {
  T neg_threshold, pos_threshold, neg_offset, pos_offset, dloss;

  // dl/dS of a pair of similarity s, times the incoming gradient of this side's row.
  MSK_DEVICE T weight(const MultiSimilarity<T>& loss, T s, bool positive, bool negative) const {
    T weight = T(0);
    if (negative && s > neg_threshold) weight = loss.neg_weight(s, neg_offset);
    if (positive && s < pos_threshold) weight = loss.pos_weight(s, pos_offset);
    return weight * dloss;  // NaN for a row whose loss is NaN, whatever is kept
  }
  // The same of a negative.
  MSK_DEVICE T negative_weight(const MultiSimilarity<T>& loss, T s) const {
    return (s > neg_threshold ? loss.neg_weight(s, neg_offset) : T(0)) * dloss;
  }
  // Of a side that weighs nothing.
  MSK_DEVICE static Term nothing() { return {kInfinity<T>, -kInfinity<T>, T(0), T(0), T(0)}; }
};

// The same for any weighting and mining rule: bounds of the pairs' values, and how they weigh.
template <typename T>
struct FamilyTerm {
  T neg_above, neg_below, pos_above, pos_below;
  KindTerm<T> negative, positive;  // the incoming gradient in coefficients and constant
  T pos_constant;

  // Of a row that is not finite: its weights stay NaN.
  MSK_DEVICE void keep_nothing() { neg_above = pos_above = kInfinity<T>; }

  // `loss` has the forms of both kinds.
  template <class Loss>
  MSK_DEVICE T weight(const Loss& loss, T s, bool is_positive, bool is_negative) const {
    if (is_negative && s > neg_above && s < neg_below) return weight_of(loss.negative, s, negative);
    const T value = loss.positive.sign * s;
    if (is_positive && value > pos_above && value < pos_below)
      return loss.positive.sign * (weight_of(loss.positive, value, positive) + pos_constant);
    // NaN for a row whose loss is NaN, whatever is kept.
    return negative.coefficient - negative.coefficient;
  }
  // What follows from the sums over kept pairs, for an incoming gradient; of a row that is not
  // finite every weight is NaN.
  MSK_DEVICE void finish(const RowTerm<T>& found, T dloss, bool finite) {
    negative = times_dloss(found.negative, dloss);
    positive = times_dloss(found.positive, dloss);
    pos_constant = times_dloss(found.positive_constant, dloss);
    if (!finite) negative.coefficient = kNaN<T>;
  }
};

// With the bounds that mining draws from a row's hardest pairs.
template <typename T>
MSK_DEVICE FamilyTerm<T> bounds_of(const PairLoss<T>& loss, T hardest_positive,
                                   T hardest_negative) {
  FamilyTerm<T> term{};
  term.neg_above = loss.negative_above(hardest_positive, hardest_negative);
  term.neg_below = loss.mining.negative_below(hardest_positive);
  term.pos_above = loss.positive_above(hardest_positive, hardest_negative);
  term.pos_below = loss.positive_below(hardest_positive, hardest_negative);
  return term;
}

template <class P>
struct Side {
  using Scalar = typename P::Scalar;
  std::int64_t count, stride;
  typename P::Operand* copy;
  Scalar *scale, *residue, *inverse;
  Scalar *neg_offset, *pos_offset;
  Scalar *neg_threshold, *pos_threshold, *dloss;          // of the MS loss
  Scalar *neg_above, *neg_below, *pos_above, *pos_below;  // of a family member
  Scalar *neg_coefficient, *pos_coefficient, *pos_constant;
  Scalar* threshold;  // of a ranked one
  std::int32_t* reached;
  Scalar* least_threshold;
  const std::int64_t *labels, *ids;

  MSK_DEVICE Side(const SideInput& in, const SideBuffers& buffers, std::int64_t stride)
      : count(in.count),
        stride(stride),
        copy(static_cast<typename P::Operand*>(buffers.copy)),
        scale(static_cast<Scalar*>(buffers.scale)),
        residue(static_cast<Scalar*>(buffers.residue)),
        inverse(static_cast<Scalar*>(buffers.inverse)),
        neg_offset(static_cast<Scalar*>(buffers.neg_offset)),
        pos_offset(static_cast<Scalar*>(buffers.pos_offset)),
        neg_threshold(static_cast<Scalar*>(buffers.neg_threshold)),
        pos_threshold(static_cast<Scalar*>(buffers.pos_threshold)),
        dloss(static_cast<Scalar*>(buffers.dloss)),
        neg_above(static_cast<Scalar*>(buffers.neg_above)),
        neg_below(static_cast<Scalar*>(buffers.neg_below)),
        pos_above(static_cast<Scalar*>(buffers.pos_above)),
        pos_below(static_cast<Scalar*>(buffers.pos_below)),
        neg_coefficient(static_cast<Scalar*>(buffers.neg_coefficient)),
        pos_coefficient(static_cast<Scalar*>(buffers.pos_coefficient)),
        pos_constant(static_cast<Scalar*>(buffers.pos_constant)),
        threshold(static_cast<Scalar*>(buffers.threshold)),
        reached(buffers.reached),
        least_threshold(static_cast<Scalar*>(buffers.least_threshold)),
        labels(in.labels),
        ids(in.ids) {}

  MSK_DEVICE Term<Scalar> term(std::int64_t i) const {
    return {neg_threshold[i], pos_threshold[i], neg_offset[i], pos_offset[i], dloss[i]};
  }
  MSK_DEVICE FamilyTerm<Scalar> family_term(std::int64_t i) const {
    return {neg_above[i],
            neg_below[i],
            pos_above[i],
            pos_below[i],
            {neg_coefficient[i], neg_offset[i]},
            {pos_coefficient[i], pos_offset[i]},
            pos_constant[i]};
  }
  MSK_DEVICE void set_family_term(std::int64_t i, const FamilyTerm<Scalar>& term) const {
    neg_above[i] = term.neg_above;
    neg_below[i] = term.neg_below;
    pos_above[i] = term.pos_above;
    pos_below[i] = term.pos_below;
    neg_coefficient[i] = term.negative.coefficient;
    neg_offset[i] = term.negative.offset;
    pos_coefficient[i] = term.positive.coefficient;
    pos_offset[i] = term.positive.offset;
    pos_constant[i] = term.pos_constant;
  }
  // Of a row that is not finite: its weights stay NaN.
  MSK_DEVICE void keep_nothing(std::int64_t i) const {
    neg_threshold[i] = kInfinity<Scalar>, pos_threshold[i] = -kInfinity<Scalar>;
  }
  MSK_DEVICE void set_term(std::int64_t i, const MultiSimilarity<Scalar>& loss,
                           Scalar hardest_positive, Scalar hardest_negative, Scalar pos_lse,
                           Scalar neg_lse, Scalar weight) const {
    neg_threshold[i] = loss.negative_threshold(hardest_positive);
    pos_threshold[i] = loss.positive_threshold(hardest_negative);
    neg_offset[i] = softplus(neg_lse);
    pos_offset[i] = softplus(pos_lse);
    dloss[i] = std::isnan(pos_lse) || std::isnan(neg_lse) ? kNaN<Scalar> : weight;
  }
};

// `rows` are the anchors of a statistics pass and the owners of a gradient pass.
template <class P>
struct Pairs {
  using Scalar = typename P::Scalar;
  Side<P> rows, columns;
  bool self;
  const MultiSimilarity<Scalar>& loss;
  bool normalize;
  Distance distance;

  MSK_DEVICE explicit Pairs(const Problem& p)
      : rows(p.rows, p.row_buffers, p.padded_depth),
        columns(p.columns, p.column_buffers, p.padded_depth),
        self(p.self),
        loss(loss_of<Scalar>(p)),
        normalize(p.options.normalize),
        distance(p.options.distance) {}

  MSK_DEVICE bool self_pair(std::int64_t i, std::int64_t j) const {
    if (rows.ids && columns.ids) {
      const std::int64_t a = rows.ids[i], b = columns.ids[j];
      return a == b || a == kIgnored || b == kIgnored;
    }
    return self && i == j;
  }
  // The product of two rounded scales would cost two ulp, which a large beta makes visible: what
  // rounding took is added. `residue` is that of both. Where to fuse is said, not left to the
  // compiler: a pair has the same bits in every kernel, and when the sides change places.
  MSK_DEVICE static Scalar scaled(Scalar sum, Scalar a, Scalar b, Scalar residue) {
    const Scalar scale = a * b;
    const Scalar lost = std::fma(scale, residue, std::fma(a, b, -scale));
    return std::fma(sum, scale, sum * lost);
  }
  // Element d of the gradient of row i, from that of its unit row and its product with the unit
  // row: (g - (g.u) u) / norm, times 0 without a direction: NaN if a weight is.
  MSK_DEVICE Scalar through_normalisation(Scalar g, Scalar dot, std::int64_t i, std::int64_t d,
                                          std::int64_t depth) const {
    if (!normalize) return g;
    if (depth == 1) return g - g;  // a normalised number is its sign
    const Scalar u = Scalar(widen(rows.copy[i * rows.stride + d])) * rows.scale[i];
    return (g - dot * u) * rows.inverse[i];
  }
};

}  // namespace msk::gpu
