// One side of the pairs as the kernels want it: normalised, sorted by label, padded.
#pragma once

#include <cmath>

#include "../rules/pair_loss.h"
#include "carve.h"
#include "codes.h"
#include "exp.h"
#include "grid.h"
#include "multiply.h"
#include "problem.h"
#include "ranks.h"

namespace msk::MSK_ISA {

// Arrays are in sorted order and as long as the axis is padded.
template <typename T>
struct Side {
  Axis axis;
  std::int64_t stride;  // of x; not a multiple of 4 KiB, whose rows would share cache sets
  T* x;                 // rows past the count, and depth up to a whole vector, are 0
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

  Side(std::int64_t count, std::int64_t depth, bool ids, int rank_capacity, Carver& carver)
      : axis(count), stride((depth + kLanes<T> - 1) / kLanes<T> * kLanes<T> + 64 / sizeof(T)) {
    const std::int64_t n = axis.padded();
    x = carver.take<T>(n * stride);
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

inline float half_to_float(std::uint16_t h) {
  // No arithmetic on a denormal of float: the caller's thread may flush those to 0.
  const float denormal = float(h & 0x03ff) * 0x1p-24f;
  std::uint32_t out;
  std::memcpy(&out, &denormal, 4);
  if (h & 0x7c00) out = (std::uint32_t(h & 0x7fff) << 13) + (112u << 23);
  if ((h & 0x7c00) == 0x7c00) out |= 0x7f800000u;
  out |= std::uint32_t(h & 0x8000) << 16;
  float value;
  std::memcpy(&value, &out, 4);
  return value;
}
inline float bfloat16_to_float(std::uint16_t h) {
  const std::uint32_t wide = std::uint32_t(h) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// In double. The row is padded with zeros to a multiple of eight.
template <typename T>
double sum_of_squares(const T* row, std::int64_t depth) {
  double lanes[8] = {};
  for (std::int64_t d = 0; d < depth; d += 8)
    for (int lane = 0; lane < 8; ++lane) lanes[lane] += double(row[d + lane]) * row[d + lane];
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return sum;
}

// Copies sample `order[k]` into row k, divided by its norm if asked.
template <typename T>
void copy_row(Side<T>& side, std::int64_t k, const SideInput& in, DType dtype, std::int64_t depth,
              bool normalize) {
  T* out = side.x + k * side.stride;
  for (std::int64_t d = depth; d < side.stride; ++d) out[d] = T(0);
  if (k >= in.count) {
    for (std::int64_t d = 0; d < depth; ++d) out[d] = T(0);
    side.norm[k] = T(0);
    return;
  }
  const std::int64_t at = side.order[k] * in.row_stride;
  if constexpr (sizeof(T) == 8) {
    if (depth) std::memcpy(out, static_cast<const double*>(in.x) + at, depth * sizeof(T));
  } else if (dtype == DType::float32) {
    if (depth) std::memcpy(out, static_cast<const float*>(in.x) + at, depth * sizeof(T));
  } else {
    const std::uint16_t* half = static_cast<const std::uint16_t*>(in.x) + at;
    if (dtype == DType::float16)
      for (std::int64_t d = 0; d < depth; ++d) out[d] = half_to_float(half[d]);
    else
      for (std::int64_t d = 0; d < depth; ++d) out[d] = bfloat16_to_float(half[d]);
  }
  double square = sum_of_squares(out, depth);
  T scale = T(1);
  if (!std::isfinite(
          T(std::sqrt(square)))) {  // elements decide: of finite ones the square overflowed
    for (std::int64_t d = 0; d < depth; ++d) {
      if (!std::isfinite(out[d])) side.poisoned[k] = 1;
      scale = std::fabs(out[d]) > scale ? std::fabs(out[d]) : scale;
    }
    if (side.poisoned[k]) {
      for (std::int64_t d = 0; d < depth; ++d) out[d] = T(0);
      side.norm[k] = T(0);
      return;
    }
    if (normalize) {
      for (std::int64_t d = 0; d < depth; ++d) out[d] /= scale;
      square = sum_of_squares(out, depth);
    }
  }
  const T norm = T(std::sqrt(square));
  side.norm[k] = norm * scale;
  if (normalize) {
    const T divisor = norm > T(kNormFloor) ? norm : T(kNormFloor);
    for (std::int64_t d = 0; d < depth; ++d) out[d] /= divisor;
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
