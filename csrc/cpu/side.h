// One side of the pairs as the kernels want it: sorted by label, padded, normalised.
#pragma once

#include <cmath>

#include "../rules/pair_loss.h"
#include "carve.h"
#include "codes.h"
#include "exp.h"
#include "grid.h"
#include "problem.h"
#include "ranks.h"

namespace msk::MSK_ISA {

// Where the caller has the rows.
struct RowSource {
  const void* x;
  std::int64_t row_stride;
  DType dtype;
  bool normalize;
};

// What turns a row into the one that is compared: of a row that is not finite, zeros.
template <typename T>
struct RowScale {
  bool finite;
  T first, norm;  // divisors; the first keeps the square of the row finite
};

// Arrays are in sorted order and as long as the axis is padded.
template <typename T>
struct Side {
  Axis axis;
  RowSource in;
  bool held;            // x is there; if not, tiles read rows where the caller has them
  std::int64_t stride;  // of x; not a multiple of 4 KiB, whose rows would share cache sets
  T* x;                 // rows past the count, and depth up to a whole vector, are 0
  RowScale<T>* scales;  // of rows that are not held
  T* norm;
  std::int32_t* order;     // the caller's index of each sample
  Code<T>* label;          // ascending
  Code<T>* id;             // null: no self pairs but the diagonal of self mode
  std::uint8_t* poisoned;  // has a similarity that is not finite

  // Statistics; the sums are log-sum-exps where the form says so.
  T *hardest_positive, *hardest_negative, *pos_sum, *neg_sum, *moment;
  Code<T>*pos_kept, *neg_kept;
  // Kept are values between above and below. A kept pair weighs factor (what its form says) +
  // constant, the incoming gradient within both.
  T *neg_above, *neg_below, *pos_above, *pos_below;
  T *neg_offset, *pos_offset, *neg_factor, *pos_factor, *pos_constant;
  Ranks<T> ranks;      // of anchors of a ranked loss, and
  T* least_threshold;  // the least of their lists

  Side(std::int64_t count, RowSource in, std::int64_t depth, bool held, bool ids, int rank_capacity,
       Carver& carver)
      : axis(count),
        in(in),
        held(held),
        stride((depth + kLanes<T> - 1) / kLanes<T> * kLanes<T> + 64 / sizeof(T)) {
    const std::int64_t n = axis.padded();
    x = held ? carver.take<T>(n * stride) : nullptr;
    scales = held ? nullptr : carver.take<RowScale<T>>(n);
    norm = carver.take<T>(n);
    order = carver.take<std::int32_t>(n);
    label = carver.take<Code<T>>(n);
    id = ids ? carver.take<Code<T>>(n) : nullptr;
    poisoned = carver.take<std::uint8_t>(n);
    for (T** array : {&hardest_positive, &hardest_negative, &pos_sum, &neg_sum, &moment, &neg_above,
                      &neg_below, &pos_above, &pos_below, &neg_offset, &pos_offset, &neg_factor,
                      &pos_factor, &pos_constant})
      *array = carver.take<T>(n);
    pos_kept = carver.take<Code<T>>(n);
    neg_kept = carver.take<Code<T>>(n);
    ranks = Ranks<T>(n, axis.block, rank_capacity, carver);
    least_threshold = carver.take<T>(rank_capacity ? n : 0);
  }

  // Of a side that holds its rows.
  const T* block(int b) const { return x + std::int64_t(b) * axis.block * stride; }
  std::int64_t first(int b) const { return std::int64_t(b) * axis.block; }
  std::int64_t last(int b) const { return first(b) + axis.valid(b) - 1; }
};

// Labels of two blocks overlap: their tile may hold positives.
template <typename T>
bool may_have_positives(const Side<T>& rows, const Side<T>& columns, Tile t) {
  return rows.label[rows.first(t.row)] <= columns.label[columns.last(t.column)] &&
         columns.label[columns.first(t.column)] <= rows.label[rows.last(t.row)];
}
template <typename T>
bool may_have_negatives(const Side<T>& rows, const Side<T>& columns, Tile t) {
  return rows.label[rows.first(t.row)] != columns.label[columns.last(t.column)] ||
         columns.label[columns.first(t.column)] != rows.label[rows.last(t.row)];
}

constexpr std::int32_t kIgnoredCode = -1;
inline std::int32_t id_code(const Codes& ids, std::int64_t id) {
  return id == kIgnored ? kIgnoredCode : ids(id);
}

// Sorts by label; serial, before the parallel region.
template <typename T>
void sort_side(Side<T>& side, const SideInput& in, const Codes& labels, const Codes* ids) {
  sort_by_code(labels, in.labels, in.count, side.order, side.label);
  for (std::int64_t k = 0; k < side.axis.padded(); ++k) {
    if (k >= in.count) side.label[k] = -1;
    if (side.id) side.id[k] = k < in.count ? id_code(*ids, in.ids[side.order[k]]) : kIgnoredCode;
    side.poisoned[k] = 0;
  }
}

// What an absent or poisoned row adds: no pair passes, no exponent survives.
template <typename T>
void mute(Side<T>& side, std::int64_t k) {
  side.neg_above[k] = side.pos_above[k] = side.neg_below[k] = side.pos_below[k] = kInfinity<T>;
  side.neg_offset[k] = side.pos_offset[k] = kInfinity<T>;
  side.neg_factor[k] = side.pos_factor[k] = side.pos_constant[k] = T(0);
}

template <typename T>
void set_negative_bounds(Side<T>& side, std::int64_t k, const PairLoss<T>& loss) {
  side.neg_above[k] = loss.negative_above(side.hardest_positive[k], side.hardest_negative[k]);
  side.neg_below[k] = loss.mining.negative_below(side.hardest_positive[k]);
  side.neg_offset[k] = T(0);
}
template <typename T>
void set_positive_bounds(Side<T>& side, std::int64_t k, const PairLoss<T>& loss) {
  const T least = side.hardest_positive[k], most = side.hardest_negative[k];
  side.pos_above[k] = loss.positive_above(least, most);
  side.pos_below[k] = loss.positive_below(least, most);
  side.pos_offset[k] = loss.positive_offset(side.neg_sum[k]);
}

// Of a row whose statistics are known; returns its loss.
template <typename T>
T set_term(Side<T>& side, std::int64_t k, const PairLoss<T>& loss, T dloss) {
  set_negative_bounds(side, k, loss);
  set_positive_bounds(side, k, loss);
  const RowTerm<T> term = loss.finish(
      {side.pos_sum[k], side.neg_sum[k], side.moment[k], T(side.pos_kept[k]), T(side.neg_kept[k])});
  const KindTerm<T> negative = times_dloss(term.negative, dloss);
  const KindTerm<T> positive = times_dloss(term.positive, dloss);
  side.neg_offset[k] = negative.offset;
  side.pos_offset[k] = positive.offset;
  side.neg_factor[k] = negative.coefficient;
  side.pos_factor[k] = positive.coefficient;
  side.pos_constant[k] = times_dloss(term.positive_constant, dloss);
  return term.loss;
}

}  // namespace msk::MSK_ISA
