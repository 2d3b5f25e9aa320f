// A weighting rule with a mining rule, chosen while running: by rows, never by pairs.
#pragma once

#include "mining.h"
#include "multi_similarity.h"
#include "weighting.h"

namespace msk {

template <typename T>
struct PairLoss {
  Rules rules;
  T margin;  // of the triplet loss, whose pairs are listed by it
  Mining<T> mining;
  T max_positive_similarity;
  Form<T> negative, positive;
  // Some kind is bounded from both sides, is no log-sum of ever harder pairs, or knows more of them
  // than their sum.
  bool general;

  MSK_HOST_DEVICE PairLoss(const Rules& r, double max_positive_similarity)
      : rules(as_known(r)),
        margin(T(r.weighting_options[0])),
        mining{r.mining, T(r.mining_options[0]), T(r.mining_options[1])},
        max_positive_similarity(T(max_positive_similarity)),
        negative(with_weighting<T>(rules, NegativeOf{})),
        positive(with_weighting<T>(rules, PositiveOf{})),
        general(negative.shape != Shape::exponential || positive.shape != Shape::exponential ||
                positive.sign > T(0) || needs_moment() || offsets_positives() ||
                mining.bounds_negatives_above()) {}

  MSK_HOST_DEVICE RowTerm<T> finish(const RowSums<T>& sums) const {
    RowTerm<T> term = with_weighting<T>(rules, FinishOf{sums});
    lose_shares(term.negative, negative, sums.negative);
    lose_shares(term.positive, positive, sums.positive);
    return term;
  }

  MSK_HOST_DEVICE T negative_above(T hardest_positive, T hardest_negative) const {
    return mining.negative_above(hardest_positive, hardest_negative);
  }
  // Bounds of the positives' values.
  MSK_HOST_DEVICE T positive_above(T hardest_positive, T hardest_negative) const {
    return positive.sign < T(0) ? -mining.positive_below(hardest_positive, hardest_negative)
                                : -kInfinity<T>;
  }
  MSK_HOST_DEVICE T positive_below(T hardest_positive, T hardest_negative) const {
    return positive.sign < T(0) ? kInfinity<T>
                                : mining.positive_below(hardest_positive, hardest_negative);
  }
  MSK_HOST_DEVICE bool ranked() const { return rules.weighting == WeightingRule::triplet; }
  // A sigmoid's, while positives are summed: what is known of the row then is its negatives.
  MSK_HOST_DEVICE bool offsets_positives() const {
    return with_weighting<T>(rules, OffsetsPositives{});
  }
  MSK_HOST_DEVICE T positive_offset(T negative_sum) const {
    return offsets_positives() ? -negative_sum : T(0);
  }
  // Whether a row's loss or weights depend on the moment of its positives.
  MSK_HOST_DEVICE bool needs_moment() const { return with_weighting<T>(rules, NeedsMoment{}); }

 private:
  MSK_HOST_DEVICE static Rules as_known(Rules r) {
    if (int(r.mining) < 0 || r.mining >= MiningRule::count) r.weighting = WeightingRule::count;
    return r;
  }
  // No pair's share in an infinite sum is known.
  MSK_HOST_DEVICE static void lose_shares(KindTerm<T>& term, const Form<T>& form, T sum) {
    if (is_log_sum(form) && sum == kInfinity<T> && term.coefficient != T(0))
      term.coefficient = kNaN<T>;
  }
  // Structs and no lambdas, which cannot be marked always inline (host_device.h).
  struct FinishOf {
    const RowSums<T>& sums;
    template <class Rule>
    MSK_HOST_DEVICE RowTerm<T> operator()(const Rule& rule) const {
      return rule.finish(sums);
    }
  };
  struct OffsetsPositives {
    template <class Rule>
    MSK_HOST_DEVICE bool operator()(const Rule&) const {
      return Rule::kOffsetsPositives;
    }
  };
  struct NeedsMoment {
    template <class Rule>
    MSK_HOST_DEVICE bool operator()(const Rule&) const {
      return Rule::kNeedsMoment;
    }
  };
  struct NegativeOf {
    template <class Rule>
    MSK_HOST_DEVICE Form<T> operator()(const Rule& rule) const {
      return rule.negative();
    }
  };
  struct PositiveOf {
    template <class Rule>
    MSK_HOST_DEVICE Form<T> operator()(const Rule& rule) const {
      return rule.positive();
    }
  };
};

}  // namespace msk
