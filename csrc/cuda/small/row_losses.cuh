// Second phase: hardest pairs, bounds, sums, loss and term of each row.
#pragma once

#include "cuda/pairs/pass.cuh"
#include "cuda/pairs/write_statistics.cuh"
#include "cuda/small/warp_row.cuh"

namespace msk::gpu {

// The finished similarities of row i, which replace their first part. All loads of a part are on
// their way before one of them is waited for.
template <class P, int kValues>
MSK_DEVICE WarpRow<typename P::Scalar, kValues> similarities_of(const Pass<P>& pass,
                                                                std::int64_t i) {
  using Scalar = typename P::Scalar;
  WarpRow<Scalar, kValues> row;
  Scalar* const out = pass.similarities + i * pass.width + lane();
  const int values = int(pass.width) / 32;  // a row is padded to a multiple of 64
#pragma unroll
  for (int k = 0; k < kValues; ++k) row.value[k] = k < values ? out[k * 32] : Scalar(0);
  for (int part = 1; part < pass.splits; ++part) {
    const Scalar* const more = out + part * pass.panel * pass.width;
#pragma unroll
    for (int k = 0; k < kValues; ++k) row.value[k] += k < values ? more[k * 32] : Scalar(0);
  }
  const Scalar scale = pass.rows.scale[i], residue = pass.rows.residue[i];
#pragma unroll
  for (int k = 0; k < kValues; ++k) {
    if (k >= values) continue;
    const int j = k * 32 + lane();
    const Scalar product =
        pass.scaled(row.value[k], scale, pass.columns.scale[j], residue + pass.columns.residue[j]);
    row.value[k] = distance_similarity(pass.distance, product);
    out[k * 32] = row.value[k];
  }
  return row;
}

// Columns of the label of row i, those that are row i itself, and those that are there at all.
struct PairSets {
  PairSet alike, self, present;
};

template <class P, int kValues>
MSK_DEVICE PairSets pair_sets(const Pass<P>& pass, std::int64_t i) {
  const int values = (int(pass.columns.count) - lane() + 31) / 32;
  PairSets sets{0, 0, values >= 32 ? ~PairSet(0) : (PairSet(1) << values) - 1};
  const auto equal = [&](const std::int64_t* codes, std::int64_t code) {
    PairSet found = 0;
#pragma unroll
    for (int k = 0; k < kValues; ++k)
      if (k < values && codes[k * 32 + lane()] == code) found |= PairSet(1) << k;
    return found;
  };
  sets.alike = equal(pass.columns.labels, pass.rows.labels[i]);
  if (pass.rows.ids && pass.columns.ids) {
    const std::int64_t id = pass.rows.ids[i];
    sets.self = id == kIgnored ? sets.present
                               : equal(pass.columns.ids, id) | equal(pass.columns.ids, kIgnored);
  } else if (pass.self && i % 32 == lane()) {
    sets.self = PairSet(1) << (i / 32);
  }
  return sets;
}

// A warp a row, which stays in registers from its similarities to its loss.
template <class P, int kValues>
MSK_DEVICE void row_loss(const Problem& p, const Pass<P>& pass,
                         const PairLoss<typename P::Scalar>& loss, std::int64_t i) {
  using Scalar = typename P::Scalar;
  const WarpRow<Scalar, kValues> row = similarities_of<P, kValues>(pass, i);
  const PairSets sets = pair_sets<P, kValues>(pass, i);
  PairSet negatives = sets.present & ~sets.alike & ~sets.self;
  PairSet positives = row.subset(sets.present & sets.alike & ~sets.self,
                                 [&](Scalar s) { return s < loss.max_positive_similarity; });
  const PairSet infinite = row.subset(sets.present, [](Scalar s) { return !std::isfinite(s); });
  Scalar least = kInfinity<Scalar>, most = -kInfinity<Scalar>;
  row.each(positives, [&](Scalar s) { least = s < least ? s : least; });
  row.each(negatives, [&](Scalar s) { most = s > most ? s : most; });
  const bool finite = __ballot_sync(0xffffffffu, infinite != 0) == 0;
  const Scalar hardest_positive = -warp_most(-least);
  Scalar hardest_negative = warp_most(most);
  if (const int k = loss.mining.hardest_negatives(); k > 1)
    hardest_negative = kth_greatest(row, negatives, k);
  FamilyTerm<Scalar> term = bounds_of<Scalar>(loss, hardest_positive, hardest_negative);
  negatives =
      row.subset(negatives, [&](Scalar s) { return s > term.neg_above && s < term.neg_below; });
  positives = row.subset(positives, [&](Scalar s) {
    const Scalar value = loss.positive.sign * s;
    return value > term.pos_above && value < term.pos_below;
  });
  const int neg_kept = warp_count(negatives), pos_kept = warp_count(positives);
  RowSums<Scalar> sums{};
  sums.pos_kept = Scalar(pos_kept);
  sums.neg_kept = Scalar(neg_kept);
  sums.negative = kind_sums(row, negatives, neg_kept, loss.negative, Scalar(0), false).sum;
  const KindSums<Scalar> positive =
      kind_sums(row, positives, pos_kept, loss.positive, loss.positive_offset(sums.negative),
                loss.needs_moment());
  sums.positive = positive.sum;
  sums.moment = positive.moment;
  if (lane() != 0) return;
  if (writes_statistics(p))
    write_statistics<Scalar>(p.statistics, i,
                             {hardest_positive, hardest_negative, pos_kept, neg_kept, finite},
                             sums.positive, sums.negative, sums.moment);
  const RowTerm<Scalar> found = loss.finish(sums);
  const Scalar poison = finite ? Scalar(0) : kNaN<Scalar>;
  static_cast<Scalar*>(p.row_loss)[i] = found.loss + poison;
  p.kept[i] = finite ? std::int64_t(pos_kept) + neg_kept : 0;
  const Scalar dloss =
      p.dloss ? static_cast<const Scalar*>(p.dloss)[i] : Scalar(p.small.gradient_of_row);
  term.finish(found, dloss + poison, finite);
  pass.rows.set_family_term(i, term);
}

template <class P, int kValues>
MSK_PHASE void row_losses(const Problem& p) {
  const Pass<P> pass(p);
  const PairLoss<typename P::Scalar> loss(p.rules, p.options.max_positive_similarity);
  // Rows go to all blocks before a second one to any.
  for (int i = threadIdx.x / 32 * gridDim.x + blockIdx.x; i < pass.rows.count;
       i += gridDim.x * kWarps<P>)
    row_loss<P, kValues>(p, pass, loss, i);
}

}  // namespace msk::gpu
