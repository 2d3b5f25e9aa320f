// The weighting rules, one struct each: the forms of its two kinds of pair, and what follows for an
// anchor from the sums over its kept pairs. Formulas and sources are those of the Python classes of
// the same names (ms_kernels/rules: weighting.py, softmax.py, triplet.py).
#pragma once

#include "form.h"
#include "multi_similarity.h"
#include "rules.h"

namespace msk {

// What most rules are: one says otherwise where it is.
struct AnyRule {
  static constexpr bool kOffsetsPositives = false;  // a positive's exponent by the negatives' sum
  static constexpr bool kNeedsMoment = false;       // finish asks for RowSums::moment
};

template <typename T>
struct Contrastive : AnyRule {
  T positive_margin, negative_margin;

  MSK_HOST_DEVICE Form<T> negative() const { return {Shape::hinge, T(1), negative_margin}; }
  MSK_HOST_DEVICE Form<T> positive() const {
    return {Shape::hinge, T(1), -positive_margin, T(0), T(-1)};
  }
  MSK_HOST_DEVICE RowTerm<T> finish(const RowSums<T>& sums) const {
    return {sums.positive + sums.negative, term_if(sums.neg_kept > T(0), T(1), T(0)),
            term_if(sums.pos_kept > T(0), T(1), T(0))};
  }
};

template <typename T>
struct BinomialDeviance : AnyRule {
  T alpha, beta, base;

  MSK_HOST_DEVICE Form<T> negative() const { return {Shape::sigmoid, beta, base}; }
  MSK_HOST_DEVICE Form<T> positive() const { return {Shape::sigmoid, alpha, -base, T(0), T(-1)}; }
  MSK_HOST_DEVICE RowTerm<T> finish(const RowSums<T>& sums) const {
    const T pos = at_least_one(sums.pos_kept), neg = at_least_one(sums.neg_kept);
    return {sums.positive / pos + sums.negative / neg,
            term_if(sums.neg_kept > T(0), beta / neg, T(0)),
            term_if(sums.pos_kept > T(0), alpha / pos, T(0))};
  }
};

// The two parts of the MS loss, each times its scale.
template <typename T>
struct BinLifted : AnyRule {
  T alpha, beta, base;

  MSK_HOST_DEVICE Form<T> negative() const { return {Shape::exponential, beta, base}; }
  MSK_HOST_DEVICE Form<T> positive() const {
    return {Shape::exponential, alpha, -base, T(0), T(-1)};
  }
  MSK_HOST_DEVICE RowTerm<T> finish(const RowSums<T>& sums) const {
    const T neg = softplus(sums.negative), pos = softplus(sums.positive);
    return {pos + neg, term_if(sums.neg_kept > T(0), beta, neg),
            term_if(sums.pos_kept > T(0), alpha, pos)};
  }
};

template <typename T>
struct LiftedStructure : AnyRule {
  T margin;

  MSK_HOST_DEVICE Form<T> negative() const { return {Shape::exponential, T(1), T(0)}; }
  MSK_HOST_DEVICE Form<T> positive() const {
    return {Shape::exponential, T(1), -margin, T(0), T(-1)};
  }
  MSK_HOST_DEVICE RowTerm<T> finish(const RowSums<T>& sums) const {
    const T total = sums.positive + sums.negative;
    const bool active = total >= T(0);
    return {active ? total : T(0), term_if(active, T(1), sums.negative),
            term_if(active, T(1), sums.positive)};
  }
};

template <typename T>
struct NTXent : AnyRule {
  static constexpr bool kOffsetsPositives = true, kNeedsMoment = true;
  T temperature;

  MSK_HOST_DEVICE Form<T> negative() const { return {Shape::exponential, 1 / temperature, T(0)}; }
  MSK_HOST_DEVICE Form<T> positive() const {
    return {Shape::sigmoid, 1 / temperature, T(0), T(0), T(-1)};
  }
  MSK_HOST_DEVICE RowTerm<T> finish(const RowSums<T>& sums) const {
    const T each = 1 / (temperature * at_least_one(sums.pos_kept));
    const bool some = sums.pos_kept > T(0) && sums.neg_kept > T(0);
    return {sums.positive / at_least_one(sums.pos_kept),
            term_if(some, sums.moment * each, sums.negative), term_if(some, each, -sums.negative)};
  }
};

template <typename T>
struct SupCon : AnyRule {
  static constexpr bool kNeedsMoment = true;
  T temperature;

  MSK_HOST_DEVICE Form<T> negative() const { return {Shape::exponential, 1 / temperature, T(0)}; }
  MSK_HOST_DEVICE Form<T> positive() const { return {Shape::exponential, 1 / temperature, T(0)}; }
  MSK_HOST_DEVICE RowTerm<T> finish(const RowSums<T>& sums) const {
    if (!(sums.pos_kept > T(0))) return {T(0), no_term<T>(), no_term<T>()};
    const T lse = log_add_exp(sums.positive, sums.negative), each = 1 / temperature;
    // The log-sum of all less the mean would lose a small loss; of the positives alone the two
    // are equal where there is one positive, and never the other way round.
    const T apart = sums.positive - sums.moment * each / sums.pos_kept;
    return {softplus(sums.negative - sums.positive) + (apart < T(0) ? T(0) : apart),
            {each, lse},
            {each, lse},
            -each / sums.pos_kept};
  }
};

template <typename T>
struct NCA : AnyRule {
  T temperature;

  MSK_HOST_DEVICE Form<T> negative() const { return {Shape::exponential, 1 / temperature, T(0)}; }
  MSK_HOST_DEVICE Form<T> positive() const { return {Shape::exponential, 1 / temperature, T(0)}; }
  MSK_HOST_DEVICE RowTerm<T> finish(const RowSums<T>& sums) const {
    if (!(sums.pos_kept > T(0) && sums.neg_kept > T(0))) return {T(0), no_term<T>(), no_term<T>()};
    // exp(-pos_lse) less the exp(-lse) of all is exp(-(pos_lse + softplus(pos_lse - neg_lse))).
    const T lse = log_add_exp(sums.positive, sums.negative), each = 1 / temperature;
    return {softplus(sums.negative - sums.positive),
            {each, lse},
            {-each, sums.positive + softplus(sums.positive - sums.negative)}};
  }
};

template <typename T>
struct Circle : AnyRule {
  T m, gamma;

  MSK_HOST_DEVICE Form<T> negative() const { return {Shape::circle, gamma, T(0), m}; }
  MSK_HOST_DEVICE Form<T> positive() const { return {Shape::circle, gamma, T(-1), m, T(-1)}; }
  MSK_HOST_DEVICE RowTerm<T> finish(const RowSums<T>& sums) const {
    if (!(sums.pos_kept > T(0) && sums.neg_kept > T(0))) return {T(0), no_term<T>(), no_term<T>()};
    const T total = sums.positive + sums.negative, share = softplus(-total);
    return {softplus(total), {T(1), sums.negative + share}, {T(1), sums.positive + share}};
  }
};

// Every kept negative against every kept positive: bases are the positives' S - margin.
template <typename T>
struct Triplet : AnyRule {
  T margin;

  MSK_HOST_DEVICE Form<T> negative() const { return {Shape::ranked, T(1), T(0)}; }
  MSK_HOST_DEVICE Form<T> positive() const { return {Shape::ranked, T(1), T(0), T(0), T(-1)}; }
  MSK_HOST_DEVICE RowTerm<T> finish(const RowSums<T>& sums) const {
    const bool some = sums.pos_kept > T(0) && sums.neg_kept > T(0);
    return {sums.negative, term_if(some, T(1), T(0)), term_if(some, T(1), T(0))};
  }
};

// NT-Xent without the positive in its own denominator.
template <typename T>
struct DecoupledContrastive : AnyRule {
  static constexpr bool kNeedsMoment = true;
  T temperature;

  MSK_HOST_DEVICE Form<T> negative() const { return {Shape::exponential, 1 / temperature, T(0)}; }
  MSK_HOST_DEVICE Form<T> positive() const { return {Shape::exponential, 1 / temperature, T(0)}; }
  MSK_HOST_DEVICE RowTerm<T> finish(const RowSums<T>& sums) const {
    if (!(sums.pos_kept > T(0) && sums.neg_kept > T(0))) return {T(0), no_term<T>(), no_term<T>()};
    const T each = 1 / temperature, pull = each / sums.pos_kept;
    return {sums.negative - sums.moment * pull, {each, sums.negative}, no_term<T>(), -pull};
  }
};

// Every pair by itself, positives pulled and negatives pushed with the same slope.
template <typename T>
struct SigLIP : AnyRule {
  T scale, bias;

  MSK_HOST_DEVICE Form<T> negative() const { return {Shape::sigmoid, scale, -bias / scale}; }
  MSK_HOST_DEVICE Form<T> positive() const {
    return {Shape::sigmoid, scale, bias / scale, T(0), T(-1)};
  }
  MSK_HOST_DEVICE RowTerm<T> finish(const RowSums<T>& sums) const {
    return {sums.positive + sums.negative, term_if(sums.neg_kept > T(0), scale, T(0)),
            term_if(sums.pos_kept > T(0), scale, T(0))};
  }
};

// A rule that nobody knows makes a number of nothing: module_call.h refuses it, and what should
// pass by there must show.
template <typename T>
struct UnknownRule : AnyRule {
  MSK_HOST_DEVICE Form<T> negative() const { return {Shape::exponential, kNaN<T>, kNaN<T>}; }
  MSK_HOST_DEVICE Form<T> positive() const { return negative(); }
  MSK_HOST_DEVICE RowTerm<T> finish(const RowSums<T>&) const {
    const KindTerm<T> term{kNaN<T>, kNaN<T>};
    return {kNaN<T>, term, term};
  }
};

// visit(rule) with the rule as a type.
template <typename T, class Visit>
MSK_HOST_DEVICE inline auto with_weighting(const Rules& rules, const Visit& visit) {
  const T a = T(rules.weighting_options[0]), b = T(rules.weighting_options[1]);
  const T c = T(rules.weighting_options[2]);
  switch (rules.weighting) {
    case WeightingRule::contrastive:
      return visit(Contrastive<T>{{}, a, b});
    case WeightingRule::binomial_deviance:
      return visit(BinomialDeviance<T>{{}, a, b, c});
    case WeightingRule::bin_lifted:
      return visit(BinLifted<T>{{}, a, b, c});
    case WeightingRule::lifted_structure:
      return visit(LiftedStructure<T>{{}, a});
    case WeightingRule::nt_xent:
      return visit(NTXent<T>{{}, a});
    case WeightingRule::sup_con:
      return visit(SupCon<T>{{}, a});
    case WeightingRule::nca:
      return visit(NCA<T>{{}, a});
    case WeightingRule::circle:
      return visit(Circle<T>{{}, a, b});
    case WeightingRule::triplet:
      return visit(Triplet<T>{{}, a});
    case WeightingRule::decoupled_contrastive:
      return visit(DecoupledContrastive<T>{{}, a});
    case WeightingRule::sig_lip:
      return visit(SigLIP<T>{{}, a, b});
    case WeightingRule::multi_similarity:
      return visit(MultiSimilarity<T>{a, b, c, T(0), T(0)});
    case WeightingRule::count:
      break;
  }
  return visit(UnknownRule<T>{});
}

}  // namespace msk
