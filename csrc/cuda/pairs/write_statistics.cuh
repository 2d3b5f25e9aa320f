// Statistics of a finished row, for a caller who wants them.
#pragma once

#include <cstdint>

#include "cuda/pairs/side.cuh"

namespace msk::gpu {

// Hardest pairs of a row, numbers of those it keeps, and whether every similarity is finite.
template <typename T>
struct RowPairs {
  T hardest_positive, hardest_negative;
  std::int32_t pos_kept, neg_kept;
  bool finite;
};

// Of the sample, whose sums are final; of a row that is not finite nothing is known.
template <typename T>
MSK_DEVICE void write_statistics(const StatisticsOutput& out, std::int64_t sample,
                                 const RowPairs<T>& row, T pos_sum, T neg_sum, T pos_moment) {
  const T poison = row.finite ? T(0) : kNaN<T>;
  const auto write = [&](void* array, T value) { static_cast<T*>(array)[sample] = value + poison; };
  write(out.hardest_positive, row.hardest_positive);
  write(out.hardest_negative, row.hardest_negative);
  write(out.pos_sum, pos_sum);
  write(out.neg_sum, neg_sum);
  out.pos_kept[sample] = row.finite ? row.pos_kept : 0;
  out.neg_kept[sample] = row.finite ? row.neg_kept : 0;
  write(out.pos_moment, pos_moment);
}

}  // namespace msk::gpu
