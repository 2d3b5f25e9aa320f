// The scans of the triplet loss in one tile: positives are listed, negatives compared with them.
#pragma once

#include "ranks.h"
#include "similarity.h"

namespace msk::MSK_ISA {

// `scan` says what rows and columns keep; the lists are of the tile's blocks.
template <typename T, bool both>
struct RankedScan {
  const TileScan<T, both, true>& scan;
  RankBlock<T> row, column;
  const T *row_least, *column_least;  // thresholds

  // Lists the kept positives, whose values are -S, of a tile that begins at these samples. Returns
  // their number.
  int list_positives(T margin, std::int64_t first_row, std::int64_t first_column) const {
    scan.clear_sums();
    int count = 0;
    for (int r = 0; r < scan.rows; ++r)
      for (int v = 0; v < scan.vectors; ++v) {
        const Vec<T> value = scan.values(r, v);
        const auto [by_row, by_column] = scan.kept(value, r, v);
        for (std::uint32_t lanes = bits<T>(by_row | by_column); lanes; lanes &= lanes - 1) {
          const int lane = __builtin_ctz(lanes), c = v * kLanes<T> + lane;
          const T threshold = -value[lane] - margin;
          ++count;
          if (by_row[lane]) {
            ++scan.row.kept[r];
            list(row, r, first_column + c, threshold);
          }
          if (both && by_column[lane]) {
            ++scan.column.kept[c];
            list(column, c, first_row + r, threshold);
          }
        }
      }
    return count;
  }

  // Sums of the kept negatives; lists the pairs that reach a threshold (scan.h).
  int sum_negatives(Pair<T>* pairs, int capacity) const {
    scan.clear_sums();
    int count = 0;
    for (int r = 0; r < scan.rows; ++r) {
      Mask<T> kept_by_row = {};
      const Vec<T> least = broadcast(row_least[r]);
      for (int v = 0; v < scan.vectors; ++v) {
        const int c = v * kLanes<T>;
        const Vec<T> s = scan.values(r, v);
        const auto [by_row, by_column] = scan.kept(s, r, v);
        kept_by_row -= by_row;
        Mask<T> reaches = by_row & (s >= least);
        if (both) {
          store(scan.column.kept + c, load_codes<T>(scan.column.kept + c) - by_column);
          reaches |= by_column & (s >= load(column_least + c));
        }
        scan.list(bits<T>(reaches), s, r, c, pairs, capacity, count);
      }
      scan.row.kept[r] = sum_lanes_of_codes<T>(kept_by_row);
    }
    if (!count) return 0;
    for (int r = 0; r < scan.rows; ++r) compare_row(r);
    for (int v = 0; both && v < scan.vectors; ++v) compare_columns(v);
    return count;
  }

 private:
  static void list(const RankBlock<T>& ranks, int anchor, std::int64_t candidate, T threshold) {
    const std::int64_t slot = ranks.slot(anchor, candidate);
    if (ranks.has(slot)) ranks.threshold[ranks.at(slot, anchor)] = threshold;
  }

  void compare_row(int r) const {
    T threshold[kMostRanks];
    int slot[kMostRanks], count = 0;
    for (int k = 0; k < row.slots; ++k) {
      threshold[count] = row.threshold[row.at(k, r)];
      slot[count] = k;
      count += scan.row.hardest[r] >= threshold[count];
    }
    if (!count) return;
    Vec<T> kept[kLongest / kLanes<T>];
    for (int v = 0; v < scan.vectors; ++v) {
      const Vec<T> s = scan.values(r, v);
      kept[v] = scan.kept(s, r, v).by_row ? s : broadcast(-kInfinity<T>);
    }
    scan.row.sum[r] = sum_lanes<T>(compare_all(
        kept, scan.vectors, count, [&](int i) { return broadcast(threshold[i]); },
        [&](int i, Mask<T> reached) { row.add(slot[i], r, sum_lanes_of_codes<T>(reached)); }));
  }

  void compare_columns(int v) const {
    const int c = v * kLanes<T>;
    const Vec<T> hardest = load(scan.column.hardest + c);
    const auto threshold = [&](int k) { return load(column.threshold + column.at(k, c)); };
    int slot[kMostRanks], count = 0;
    for (int k = 0; k < column.slots; ++k) {
      slot[count] = k;
      count += bits<T>(hardest >= threshold(k)) != 0;
    }
    if (!count) return;
    Vec<T> kept[kLongest];
    for (int r = 0; r < scan.rows; ++r) {
      const Vec<T> s = scan.values(r, v);
      kept[r] = scan.kept(s, r, v).by_column ? s : broadcast(-kInfinity<T>);
    }
    store(scan.column.sum + c,
          compare_all(
              kept, scan.rows, count, [&](int i) { return threshold(slot[i]); },
              [&](int i, Mask<T> reached) {
                for (int lane = 0; lane < kLanes<T>; ++lane)
                  column.add(slot[i], c + lane, reached[lane]);
              }));
  }

  // Sum of max(0, value - threshold); counted(i, values that reach threshold i), in lanes.
  template <class Threshold, class Counted>
  static Vec<T> compare_all(const Vec<T>* values, int number, int thresholds, Threshold threshold,
                            Counted counted) {
    Vec<T> sum = {};
    int i = 0;
    for (; i + 4 <= thresholds; i += 4) compare<4>(values, number, i, threshold, counted, sum);
    for (; i < thresholds; ++i) compare<1>(values, number, i, threshold, counted, sum);
    return sum;
  }
  template <int K, class Threshold, class Counted>
  static void compare(const Vec<T>* values, int number, int first, Threshold threshold,
                      Counted counted, Vec<T>& sum) {
    Vec<T> bound[K], over[K] = {};
    Mask<T> reached[K] = {};
    for (int k = 0; k < K; ++k) bound[k] = threshold(first + k);
    for (int i = 0; i < number; ++i)
      for (int k = 0; k < K; ++k) {
        reached[k] -= values[i] >= bound[k];
        over[k] += positive_part<T>(values[i] - bound[k]);
      }
    for (int k = 0; k < K; ++k) {
      sum += over[k];
      counted(first + k, reached[k]);
    }
  }

  static constexpr int kLongest = kLongestBlock;
};

}  // namespace msk::MSK_ISA
