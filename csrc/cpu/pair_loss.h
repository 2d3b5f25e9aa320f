// A weighting rule with a mining rule, chosen while running: by rows, never by pairs.
#pragma once

#include "../math/mining_rules.h"
#include "../math/multi_similarity.h"
#include "../math/weighting_rules.h"

namespace msk::MSK_ISA {

// visit(rule) with the struct of the weighting rule.
template <typename T, typename Visit>
auto with_weighting(const Rules& rules, Visit visit) {
  const T a = T(rules.weighting_options[0]), b = T(rules.weighting_options[1]),
          c = T(rules.weighting_options[2]);
  switch (rules.weighting) {
    case WeightingRule::contrastive:
      return visit(Contrastive<T>{a, b});
    case WeightingRule::binomial_deviance:
      return visit(BinomialDeviance<T>{a, b, c});
    case WeightingRule::bin_lifted:
      return visit(BinLifted<T>{a, b, c});
    case WeightingRule::lifted_structure:
      return visit(LiftedStructure<T>{a});
    case WeightingRule::nt_xent:
      return visit(NTXent<T>{a});
    case WeightingRule::sup_con:
      return visit(SupCon<T>{a});
    case WeightingRule::nca:
      return visit(NCA<T>{a});
    case WeightingRule::circle:
      return visit(Circle<T>{a, b});
    default:
      return visit(MultiSimilarity<T>{a, b, c, T(0), T(0)});
  }
}

template <typename T>
struct PairLoss {
  Rules rules;
  Mining<T> mining;
  T max_positive_similarity;
  Form<T> negative, positive;
  // Some kind is bounded from both sides, or is no log-sum of ever harder pairs.
  bool general;

  PairLoss(const Rules& r, double max_positive_similarity)
      : rules(r),
        mining{r.mining, T(r.mining_options[0]), T(r.mining_options[1])},
        max_positive_similarity(T(max_positive_similarity)),
        negative(with_weighting<T>(r, [](auto rule) { return rule.negative(); })),
        positive(with_weighting<T>(r, [](auto rule) { return rule.positive(); })),
        general(negative.shape != Shape::exponential || positive.shape != Shape::exponential ||
                positive.sign > T(0) || mining.rule == MiningRule::semi_hard) {}

  RowTerm<T> finish(const RowSums<T>& sums) const {
    return with_weighting<T>(rules, [&](auto rule) { return rule.finish(sums); });
  }
  T negative_above(T hardest_positive, T hardest_negative) const {
    return mining.negative_above(hardest_positive, hardest_negative);
  }
  // Bounds of the positives' values.
  T positive_above(T hardest_positive, T hardest_negative) const {
    return positive.sign < T(0) ? -mining.positive_below(hardest_positive, hardest_negative)
                                : -kNever<T>;
  }
  T positive_below(T hardest_positive, T hardest_negative) const {
    return positive.sign < T(0) ? kNever<T>
                                : mining.positive_below(hardest_positive, hardest_negative);
  }
  // A sigmoid's, while positives are summed: what is known of the row then is its negatives.
  T positive_offset(T negative_sum) const {
    return rules.weighting == WeightingRule::nt_xent ? -negative_sum : T(0);
  }
};

}  // namespace msk::MSK_ISA
