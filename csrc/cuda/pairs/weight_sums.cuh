// What the weights of pairs add up to: the derivatives of options that learn follow from it.
#pragma once

#include "cuda/core/block_reduce.cuh"
#include "cuda/pairs/side.cuh"

namespace msk::gpu {

// Of positives, then of negatives: sum dl/dS and sum (S - base) dl/dS, which lose nothing where all
// similarities lie close to the base. Of a circle, whose scale and margin stand in a and z
// (rules/form.h): sum dl/dz where a is not 0, and sum (u - margin) dl/du. In double: of thousands
// of almost equal weights a float32 sum would be off by one in 10^5.
struct WeightSums {
  double positive, positive_beyond, negative, negative_beyond;

  MSK_DEVICE WeightSums exchanged(int mask) const {
    return {exchange(positive, mask), exchange(positive_beyond, mask), exchange(negative, mask),
            exchange(negative_beyond, mask)};
  }
  MSK_DEVICE static WeightSums plus(const WeightSums& a, const WeightSums& b) {
    return {a.positive + b.positive, a.positive_beyond + b.positive_beyond, a.negative + b.negative,
            a.negative_beyond + b.negative_beyond};
  }

  // Of a pair, if its anchor keeps it. One code for both kinds, which are told apart by numbers.
  template <typename T>
  MSK_DEVICE void add(const PairLoss<T>& loss, const FamilyTerm<T>& anchor, T s, bool is_negative) {
    const Form<T> form = is_negative ? loss.negative : loss.positive;
    const KindTerm<T> term = is_negative ? anchor.negative : anchor.positive;
    const T above = is_negative ? anchor.neg_above : anchor.pos_above;
    const T below = is_negative ? anchor.neg_below : anchor.pos_below;
    const T value = form.sign * s;
    if (!(value > above && value < below)) return;
    const T weight = weight_of(form, value, term) + (is_negative ? T(0) : anchor.pos_constant);
    T first = form.sign * weight, beyond = value - form.base;
    if (form.shape == Shape::circle) {
      const T a = circle_factor(form, value);
      first = a > T(0) ? weight / a : T(0);
      beyond -= form.margin;
    }
    const T second = weight == T(0) ? T(0) : weight * beyond;
    positive += is_negative ? 0 : double(first),
        positive_beyond += is_negative ? 0 : double(second);
    negative += is_negative ? double(first) : 0,
        negative_beyond += is_negative ? double(second) : 0;
  }
  template <typename T>
  MSK_DEVICE void write(T* out) const {
    out[0] = T(positive), out[1] = T(positive_beyond);
    out[2] = T(negative), out[3] = T(negative_beyond);
  }
};

static_assert(sizeof(WeightSums) == kWeightSumsBytes, "the plan takes as much");

// By one block: of what each of `count` owners found.
template <class P>
MSK_DEVICE void write_total(const Problem& p, std::int64_t count) {
  const auto* const found = static_cast<const WeightSums*>(p.row_sums);
  WeightSums total{};
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads<P>)
    total = WeightSums::plus(total, found[i]);
  auto* const smem = reinterpret_cast<WeightSums*>(shared_memory());
  total = block_reduce<kWarps<P>>(total, smem, WeightSums::plus);
  if (threadIdx.x == 0) total.write(static_cast<typename P::Scalar*>(p.weight_sums));
}

}  // namespace msk::gpu
