// A weighting rule with a mining rule, chosen while running: by rows, never by pairs.
//
// Switches instead of a visitor: a lambda cannot be marked always inline (host_device.h).
#pragma once

#include "mining_rules.h"
#include "multi_similarity.h"
#include "weighting_rules.h"

namespace msk {

template <typename T>
struct PairLoss {
  Rules rules;
  T a, b, c;  // options of the weighting rule
  Mining<T> mining;
  T max_positive_similarity;
  Form<T> negative, positive;
  // Some kind is bounded from both sides, or is no log-sum of ever harder pairs.
  bool general;

  MSK_HOST_DEVICE PairLoss(const Rules& r, double max_positive_similarity)
      : rules(r),
        a(T(r.weighting_options[0])),
        b(T(r.weighting_options[1])),
        c(T(r.weighting_options[2])),
        mining{r.mining, T(r.mining_options[0]), T(r.mining_options[1])},
        max_positive_similarity(T(max_positive_similarity)),
        negative(negative_form()),
        positive(positive_form()),
        general(negative.shape != Shape::exponential || positive.shape != Shape::exponential ||
                positive.sign > T(0) || mining.rule == MiningRule::semi_hard) {}

  MSK_HOST_DEVICE RowTerm<T> finish(const RowSums<T>& sums) const {
    switch (rules.weighting) {
      case WeightingRule::contrastive:
        return Contrastive<T>{a, b}.finish(sums);
      case WeightingRule::binomial_deviance:
        return BinomialDeviance<T>{a, b, c}.finish(sums);
      case WeightingRule::bin_lifted:
        return BinLifted<T>{a, b, c}.finish(sums);
      case WeightingRule::lifted_structure:
        return LiftedStructure<T>{a}.finish(sums);
      case WeightingRule::nt_xent:
        return NTXent<T>{a}.finish(sums);
      case WeightingRule::sup_con:
        return SupCon<T>{a}.finish(sums);
      case WeightingRule::nca:
        return NCA<T>{a}.finish(sums);
      case WeightingRule::circle:
        return Circle<T>{a, b}.finish(sums);
      case WeightingRule::triplet:
        return Triplet<T>{a}.finish(sums);
      default:  // multi_similarity; module_call.h lets no other code pass
        return MultiSimilarity<T>{a, b, c, T(0), T(0)}.finish(sums);
    }
  }

  MSK_HOST_DEVICE T negative_above(T hardest_positive, T hardest_negative) const {
    return mining.negative_above(hardest_positive, hardest_negative);
  }
  // Bounds of the positives' values.
  MSK_HOST_DEVICE T positive_above(T hardest_positive, T hardest_negative) const {
    return positive.sign < T(0) ? -mining.positive_below(hardest_positive, hardest_negative)
                                : -kNever<T>;
  }
  MSK_HOST_DEVICE T positive_below(T hardest_positive, T hardest_negative) const {
    return positive.sign < T(0) ? kNever<T>
                                : mining.positive_below(hardest_positive, hardest_negative);
  }
  MSK_HOST_DEVICE bool ranked() const { return rules.weighting == WeightingRule::triplet; }
  // A sigmoid's, while positives are summed: what is known of the row then is its negatives.
  MSK_HOST_DEVICE bool offsets_positives() const {
    return rules.weighting == WeightingRule::nt_xent;
  }
  MSK_HOST_DEVICE T positive_offset(T negative_sum) const {
    return offsets_positives() ? -negative_sum : T(0);
  }

 private:
  MSK_HOST_DEVICE Form<T> negative_form() const {
    switch (rules.weighting) {
      case WeightingRule::contrastive:
        return Contrastive<T>{a, b}.negative();
      case WeightingRule::binomial_deviance:
        return BinomialDeviance<T>{a, b, c}.negative();
      case WeightingRule::bin_lifted:
        return BinLifted<T>{a, b, c}.negative();
      case WeightingRule::lifted_structure:
        return LiftedStructure<T>{a}.negative();
      case WeightingRule::nt_xent:
        return NTXent<T>{a}.negative();
      case WeightingRule::sup_con:
        return SupCon<T>{a}.negative();
      case WeightingRule::nca:
        return NCA<T>{a}.negative();
      case WeightingRule::circle:
        return Circle<T>{a, b}.negative();
      case WeightingRule::triplet:
        return Triplet<T>{a}.negative();
      default:  // multi_similarity; module_call.h lets no other code pass
        return MultiSimilarity<T>{a, b, c, T(0), T(0)}.negative();
    }
  }
  MSK_HOST_DEVICE Form<T> positive_form() const {
    switch (rules.weighting) {
      case WeightingRule::contrastive:
        return Contrastive<T>{a, b}.positive();
      case WeightingRule::binomial_deviance:
        return BinomialDeviance<T>{a, b, c}.positive();
      case WeightingRule::bin_lifted:
        return BinLifted<T>{a, b, c}.positive();
      case WeightingRule::lifted_structure:
        return LiftedStructure<T>{a}.positive();
      case WeightingRule::nt_xent:
        return NTXent<T>{a}.positive();
      case WeightingRule::sup_con:
        return SupCon<T>{a}.positive();
      case WeightingRule::nca:
        return NCA<T>{a}.positive();
      case WeightingRule::circle:
        return Circle<T>{a, b}.positive();
      case WeightingRule::triplet:
        return Triplet<T>{a}.positive();
      default:  // multi_similarity; module_call.h lets no other code pass
        return MultiSimilarity<T>{a, b, c, T(0), T(0)}.positive();
    }
  }
};

}  // namespace msk
