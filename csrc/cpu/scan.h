// Statistics of one tile: hardest pair, log-sum-exp and number of kept pairs, of rows and columns.
//
// Positives are scanned as -S (select_pairs), so `value` is S or -S and harder is always greater.
#pragma once

#include "mask.h"

namespace msk::MSK_ISA {

// Exponents that differ by less than this may share one reference: an exponential then errs by half
// an ulp of this number.
template <typename T>
constexpr T kSharedSpread = sizeof(T) == 8 ? T(400) : T(8);

// A kept pair of a tile. `value` is its similarity, later its weight.
template <typename T>
struct Pair {
  T value;
  std::uint8_t row, column;  // within the tile
  std::uint16_t by_column;   // the k-th pair in column order is pair[k].by_column
};

// Partial statistics, one of each for every row of an axis. sum = sum over kept pairs of
// exp(scale (value - hardest)).
template <typename T>
struct Cells {
  T *hardest, *sum;
  Code<T>* kept;

  Cells at(std::int64_t row) const { return {hardest + row, sum + row, kept + row}; }
  void clear(int count) const {
    for (int i = 0; i < count; ++i) hardest[i] = -kInfinity<T>;
    clear_sums(count);
  }
  void clear_sums(int count) const {
    std::memset(sum, 0, count * sizeof(T));
    std::memset(kept, 0, count * sizeof(T));
  }
};

// Adds `count` cells (a whole number of vectors) to others.
template <typename T>
void merge(const Cells<T>& into, const Cells<T>& from, int count, T scale) {
  for (int i = 0; i < count; i += kLanes<T>) {
    const Vec<T> a = load(into.hardest + i), b = load(from.hardest + i);
    const Vec<T> a_sum = load(into.sum + i), b_sum = load(from.sum + i);
    const Vec<T> hardest = greater(a, b);
    // An empty sum has hardest = -inf, and -inf minus -inf is NaN: select after the product.
    const Vec<T> a_part = a_sum > T(0) ? a_sum * exp<T>(scale * (a - hardest)) : Vec<T>{};
    const Vec<T> b_part = b_sum > T(0) ? b_sum * exp<T>(scale * (b - hardest)) : Vec<T>{};
    store(into.hardest + i, hardest);
    store(into.sum + i, a_part + b_part);
    store(into.kept + i, load_codes<T>(into.kept + i) + load_codes<T>(from.kept + i));
  }
}

// `both` says that columns are anchors too (self mode).
template <typename T, bool both>
struct TileScan {
  const T* value;
  int stride, rows, vectors;
  const T *row_threshold, *column_threshold;
  T scale;
  Cells<T> row, column;  // out

  void find_hardest() const {
    for (int v = 0; both && v < vectors; ++v)
      store(column.hardest + v * kLanes<T>, broadcast(-kInfinity<T>));
    for (int r = 0; r < rows; ++r) {
      const T* values = value + std::int64_t(r) * stride;
      Vec<T> hardest = broadcast(-kInfinity<T>);
      for (int v = 0; v < vectors; ++v) {
        const Vec<T> s = load(values + v * kLanes<T>);
        hardest = greater(hardest, s);
        if (both) {
          T* at = column.hardest + v * kLanes<T>;
          store(at, greater(load(at), s));
        }
      }
      row.hardest[r] = greatest_lane<T>(hardest);
    }
  }

  // Range of the hardest values of rows and columns that keep a pair; empty: nothing is kept.
  struct Range {
    T least = kInfinity<T>, most = -kInfinity<T>, least_column_threshold = kInfinity<T>;
    bool empty() const { return least > most; }
    void add(T hardest) {
      least = hardest < least ? hardest : least;
      most = hardest > most ? hardest : most;
    }
  };
  Range kept_range() const {
    Range range;
    for (int r = 0; r < rows; ++r)
      if (row.hardest[r] > row_threshold[r]) range.add(row.hardest[r]);
    for (int c = 0; both && c < vectors * kLanes<T>; ++c)
      if (column.hardest[c] > column_threshold[c]) {
        range.add(column.hardest[c]);
        if (column_threshold[c] < range.least_column_threshold)
          range.least_column_threshold = column_threshold[c];
      }
    return range;
  }

  // After find_hardest: sums and counts. Writes the first `capacity` kept pairs, row by row, and
  // returns the number of all.
  int sum_kept(const Range& range, Pair<T>* pairs, int capacity) const {
    return scale * (range.most - range.least) <= kSharedSpread<T>
               ? sum_kept<true>(range, pairs, capacity)
               : sum_kept<false>(range, pairs, capacity);
  }

 private:
  template <bool shared>
  int sum_kept(const Range& range, Pair<T>* pairs, int capacity) const {
    for (int v = 0; both && v < vectors; ++v) {
      store(column.sum + v * kLanes<T>, Vec<T>{});
      store(column.kept + v * kLanes<T>, Mask<T>{});
    }
    int count = 0;
    for (int r = 0; r < rows; ++r) {
      const T threshold = row_threshold[r];
      const T hardest = row.hardest[r];
      row.sum[r] = T(0);
      row.kept[r] = 0;
      if (!(hardest > threshold) && !(both && hardest > range.least_column_threshold)) continue;
      const T* values = value + std::int64_t(r) * stride;
      Vec<T> sum = {};
      Mask<T> kept = {};
      for (int v = 0; v < vectors; ++v) {
        const int c = v * kLanes<T>;
        const Vec<T> s = load(values + c);
        const Mask<T> by_row = s > threshold;
        Mask<T> either = by_row, by_column = {};
        if (both) {
          by_column = s > load(column_threshold + c);
          either |= by_column;
        }
        std::uint32_t lanes = bits<T>(either);
        if (!lanes) continue;
        const Vec<T> e = exp<T>(scale * (s - (shared ? range.most : hardest)));
        sum += by_row ? e : Vec<T>{};
        kept -= by_row;
        if (both) {
          Vec<T> column_e = e;
          if (!shared) column_e = exp<T>(scale * (s - load(column.hardest + c)));
          store(column.sum + c, load(column.sum + c) + (by_column ? column_e : Vec<T>{}));
          store(column.kept + c, load_codes<T>(column.kept + c) - by_column);
        }
        for (; lanes; lanes &= lanes - 1, ++count) {
          if (count >= capacity) {
            count += __builtin_popcount(lanes);
            break;
          }
          const int lane = __builtin_ctz(lanes);
          pairs[count] = {values[c + lane], std::uint8_t(r), std::uint8_t(c + lane), 0};
        }
      }
      row.sum[r] = sum_lanes<T>(sum);
      row.kept[r] = sum_lanes_of_codes<T>(kept);
    }
    if (shared) {
      refer_to_hardest(row, rows, range.most);
      if (both) refer_to_hardest(column, vectors * kLanes<T>, range.most);
    }
    return count;
  }

  // From exp(scale (value - reference)) to exp(scale (value - hardest)). Arrays are padded.
  void refer_to_hardest(const Cells<T>& cells, int count, T reference) const {
    for (int i = 0; i < count; i += kLanes<T>) {
      const Vec<T> sum = load(cells.sum + i);
      const Vec<T> factor = exp<T>(scale * (reference - load(cells.hardest + i)));
      store(cells.sum + i, sum > T(0) ? sum * factor : Vec<T>{});
    }
  }
};

}  // namespace msk::MSK_ISA
