// Partial statistics of a tile's rows and columns, how they are joined, and the pairs it lists.
//
// Pairs have values (form.h); mostly harder is greater.
#pragma once

#include "form.h"

namespace msk::MSK_ISA {

// A kept pair of a tile. `value` is its similarity, later its weight.
template <typename T>
struct Pair {
  T value;
  std::uint8_t row, column;  // within the tile
  std::uint16_t by_column;   // the k-th pair in column order is pair[k].by_column
};

// Partial statistics, one of each for every row of an axis. sum = sum over kept pairs of
// exp(z - z of hardest), or of what the form says; the hardest is that of pairs under the cap.
template <typename T>
struct Cells {
  T *hardest, *sum;
  Code<T>* kept;
  T* moment;  // null but for general forms

  Cells at(std::int64_t row) const {
    return {hardest + row, sum + row, kept + row, moment ? moment + row : nullptr};
  }
  void clear(int count) const {
    for (int i = 0; i < count; ++i) hardest[i] = -kInfinity<T>;
    clear_sums(count);
  }
  void clear_sums(int count) const {
    std::memset(sum, 0, count * sizeof(T));
    std::memset(kept, 0, count * sizeof(T));
    if (moment) std::memset(moment, 0, count * sizeof(T));
  }
};

// Adds `count` cells (a whole number of vectors) to others.
template <typename T>
void merge(const Cells<T>& into, const Cells<T>& from, int count, const Form<T>& of) {
  with_shape<T>(of, [&](auto form) {
    for (int i = 0; i < count; i += kLanes<T>) {
      const Vec<T> a = load(into.hardest + i), b = load(from.hardest + i);
      const Vec<T> a_sum = load(into.sum + i), b_sum = load(from.sum + i);
      const Vec<T> hardest = greater(a, b);
      store(into.hardest + i, hardest);
      if constexpr (form.log_sum) {
        // An empty sum has hardest = -inf, and -inf minus -inf is NaN: select after the product.
        const Vec<T> a_part =
            a_sum > T(0) ? a_sum * exp<T>(form.relative_to_hardest(a, hardest)) : Vec<T>{};
        const Vec<T> b_part =
            b_sum > T(0) ? b_sum * exp<T>(form.relative_to_hardest(b, hardest)) : Vec<T>{};
        store(into.sum + i, a_part + b_part);
      } else {
        store(into.sum + i, a_sum + b_sum);
      }
      store(into.kept + i, load_codes<T>(into.kept + i) + load_codes<T>(from.kept + i));
      if (into.moment && from.moment)
        store(into.moment + i, load(into.moment + i) + load(from.moment + i));
    }
  });
}

// Of one kind of pair, what each row of an axis asks: kept are values above `above` and, of a
// general kind, below `below`; `offset` is that of a sigmoid.
template <typename T>
struct Bounds {
  const T *above, *below, *offset;
};

}  // namespace msk::MSK_ISA
