// Third phase for any weighting and mining rule: losses and terms of the rows of a panel.
#pragma once

#include "cuda/batch/row_statistics.cuh"

namespace msk::gpu {

// Greatest exponents and numbers of kept pairs.
template <typename T>
struct Peaks {
  T positive, negative;
  std::int32_t pos_kept, neg_kept;
  MSK_DEVICE Peaks exchanged(int mask) const {
    return {exchange(positive, mask), exchange(negative, mask), exchange(pos_kept, mask),
            exchange(neg_kept, mask)};
  }
  MSK_DEVICE static Peaks joined(const Peaks& a, const Peaks& b) {
    return {a.positive > b.positive ? a.positive : b.positive,
            a.negative > b.negative ? a.negative : b.negative, a.pos_kept + b.pos_kept,
            a.neg_kept + b.neg_kept};
  }
};

template <typename T>
struct SumAndMoment {
  T sum, moment;
  MSK_DEVICE SumAndMoment exchanged(int mask) const {
    return {exchange(sum, mask), exchange(moment, mask)};
  }
  MSK_DEVICE static SumAndMoment plus(const SumAndMoment& a, const SumAndMoment& b) {
    return {a.sum + b.sum, a.moment + b.moment};
  }
};

template <typename T>
MSK_DEVICE T finished(const Form<T>& form, std::int32_t kept, T peak, T sum) {
  if (!is_log_sum(form)) return sum;
  return kept ? peak + std::log(sum) : -kInfinity<T>;
}

// One block a row, which looks at its pairs four times: hardest, greatest exponents, sums of
// negatives, sums of positives, whose offsets may depend on those.
template <class P>
MSK_PHASE void family_statistics(const Problem& p, std::int64_t first) {
  const Pass<P> pass(p);
  using Scalar = typename P::Scalar;
  const PairLoss<Scalar> loss = pair_loss_of<Scalar>(p);
  auto* const hardest_smem = reinterpret_cast<Hardest<Scalar>*>(shared_memory());
  auto* const peaks_smem = reinterpret_cast<Peaks<Scalar>*>(hardest_smem + kWarps<P>);
  auto* const negative_smem = reinterpret_cast<SumAndMoment<Scalar>*>(peaks_smem + kWarps<P>);
  auto* const positive_smem = negative_smem + kWarps<P>;
  auto* const tied_smem = reinterpret_cast<Tied<Scalar>*>(positive_smem + kWarps<P>);
  const std::int64_t last = first + pass.height(first);
  for (std::int64_t i = first + blockIdx.x; i < last && i < pass.rows.count; i += gridDim.x) {
    const Scalar* const row = pass.similarities + (i - first) * pass.width;
    const std::int64_t label = pass.rows.labels[i];
    Hardest<Scalar> hardest =
        hardest_pairs(pass, first, i, loss.max_positive_similarity, hardest_smem);
    if (const int k = loss.mining.hardest_negatives(); k > 1)
      hardest.negative = kth_hardest_negative(pass, first, i, k, tied_smem);
    FamilyTerm<Scalar> term = bounds_of<Scalar>(loss, hardest.positive, hardest.negative);
    // visit(value, is_positive) for the kept pairs.
    const auto each_kept = [&](auto visit) {
      for (std::int64_t j = threadIdx.x; j < pass.columns.count; j += kThreads<P>) {
        if (pass.self_pair(i, j)) continue;
        const Scalar s = row[j], value = loss.positive.sign * s;
        if (pass.columns.labels[j] != label) {
          if (s > term.neg_above && s < term.neg_below) visit(s, false);
        } else if (s < loss.max_positive_similarity && value > term.pos_above &&
                   value < term.pos_below) {
          visit(value, true);
        }
      }
    };
    Peaks<Scalar> peaks{-kInfinity<Scalar>, -kInfinity<Scalar>, 0, 0};
    each_kept([&](Scalar value, bool positive) {
      const Scalar z = exponent_of(positive ? loss.positive : loss.negative, value);
      Scalar& peak = positive ? peaks.positive : peaks.negative;
      peak = z > peak ? z : peak;
      ++(positive ? peaks.pos_kept : peaks.neg_kept);
    });
    peaks = block_reduce<kWarps<P>>(peaks, peaks_smem, Peaks<Scalar>::joined);
    SumAndMoment<Scalar> sum{Scalar(0), Scalar(0)};
    each_kept([&](Scalar value, bool positive) {
      if (positive) return;
      sum.sum += is_log_sum(loss.negative)
                     ? std::exp(below_peak(exponent_of(loss.negative, value), peaks.negative))
                     : summand(loss.negative, value, Scalar(0));
    });
    sum = block_reduce<kWarps<P>>(sum, negative_smem, SumAndMoment<Scalar>::plus);
    RowSums<Scalar> sums{};
    sums.pos_kept = Scalar(peaks.pos_kept);
    sums.neg_kept = Scalar(peaks.neg_kept);
    sums.negative = finished(loss.negative, peaks.neg_kept, peaks.negative, sum.sum);
    const Scalar offset = loss.positive_offset(sums.negative);
    sum = {Scalar(0), Scalar(0)};
    each_kept([&](Scalar value, bool positive) {
      if (!positive) return;
      const Scalar z = exponent_of(loss.positive, value);
      if (is_log_sum(loss.positive)) {
        sum.sum += std::exp(below_peak(z, peaks.positive));
        sum.moment += value;
      } else {
        sum.sum += summand(loss.positive, value, offset);
        sum.moment += sigmoid(z - offset);
      }
    });
    sum = block_reduce<kWarps<P>>(sum, positive_smem, SumAndMoment<Scalar>::plus);
    if (threadIdx.x != 0) continue;
    sums.positive = finished(loss.positive, peaks.pos_kept, peaks.positive, sum.sum);
    sums.moment = loss.needs_moment() ? sum.moment : Scalar(0);
    const Scalar poison = hardest.finite ? Scalar(0) : kNaN<Scalar>;
    if (writes_statistics(p)) {
      if (std::isnan(loss.negative.scale)) sums.negative = kNaN<Scalar>;  // of an unknown rule
      write_statistics<Scalar>(
          p.statistics, i,
          {hardest.positive, hardest.negative, peaks.pos_kept, peaks.neg_kept, hardest.finite},
          sums.positive, sums.negative, sums.moment);
    }
    if (p.job == Job::statistics) continue;
    const RowTerm<Scalar> found = loss.finish(sums);
    static_cast<Scalar*>(p.row_loss)[i] = found.loss + poison;
    p.kept[i] = hardest.finite ? std::int64_t(peaks.pos_kept) + peaks.neg_kept : 0;
    const Scalar dloss = (p.dloss ? static_cast<const Scalar*>(p.dloss)[i] : Scalar(1)) + poison;
    term.finish(found, dloss, hardest.finite);
    pass.rows.set_family_term(i, term);
  }
}

}  // namespace msk::gpu
