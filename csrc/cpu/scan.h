// Statistics of one tile: hardest pair, sum over the kept pairs and their number, of rows and
// columns.
#pragma once

#include "cells.h"
#include "hardest_lists.h"
#include "mask.h"

namespace msk::MSK_ISA {

// Exponents that differ by less than this may share one reference: an exponential then errs by half
// an ulp of this number.
template <typename T>
constexpr T kSharedSpread = sizeof(T) == 8 ? T(400) : T(8);

// `both` says that columns are anchors too (self mode). `general` kinds have bounds below and a
// moment, or another form than the exponential.
template <typename T, bool both, bool general>
struct TileScan {
  const T* value;
  int stride, rows, vectors;
  Bounds<T> row_bounds, column_bounds;
  Form<T> form;
  bool same_offsets;     // all are 0
  Cells<T> row, column;  // out

  struct Kept {
    Mask<T> by_row, by_column;
  };

  Vec<T> values(int r, int v) const {
    return load(value + std::int64_t(r) * stride + v * kLanes<T>);
  }
  Kept kept(Vec<T> s, int r, int v) const {
    Kept found{between(s, broadcast(row_bounds.above[r]), broadcast(below(row_bounds, r))), {}};
    if (both)
      found.by_column = between(s, load(column_bounds.above + v * kLanes<T>), column_below(v));
    return found;
  }
  void clear_sums() const {
    for (int r = 0; r < rows; ++r) clear_row(r);
    clear_columns();
  }
  // Adds pairs of a vector to the list as long as there is room, and counts all of them.
  static void list(std::uint32_t lanes, Vec<T> s, int r, int c, Pair<T>* pairs, int capacity,
                   int& count) {
    for (; lanes; lanes &= lanes - 1, ++count) {
      if (count >= capacity) {
        count += __builtin_popcount(lanes);
        break;
      }
      const int lane = __builtin_ctz(lanes);
      pairs[count] = {s[lane], std::uint8_t(r), std::uint8_t(c + lane), 0};
    }
  }

  void find_hardest() const {
    for (int v = 0; both && v < vectors; ++v)
      store(column.hardest + v * kLanes<T>, broadcast(-kInfinity<T>));
    for (int r = 0; r < rows; ++r) {
      const T* values = value + std::int64_t(r) * stride;
      Vec<T> hardest = broadcast(-kInfinity<T>);
      for (int v = 0; v < vectors; ++v) {
        const Vec<T> s = load(values + v * kLanes<T>);
        hardest = greater(hardest, under(s, broadcast(below(row_bounds, r))));
        if (both) {
          T* at = column.hardest + v * kLanes<T>;
          store(at, greater(load(at), under(s, column_below(v))));
        }
      }
      row.hardest[r] = greatest_lane<T>(hardest);
    }
  }

  // After find_hardest: lists what may be among an anchor's hardest of all tiles. The tile begins
  // at these samples.
  void list_hardest(const HardestLists<T>& lists, std::int64_t first_row,
                    std::int64_t first_column) const {
    for (int r = 0; r < rows; ++r) {
      const T least = lists.least(first_row + r);
      if (!(row.hardest[r] > least)) continue;
      for (int v = 0; v < vectors; ++v) {
        const Vec<T> s = values(r, v);
        for (std::uint32_t lanes = bits<T>(s > broadcast(least)); lanes; lanes &= lanes - 1)
          lists.add(first_row + r, s[__builtin_ctz(lanes)]);
      }
    }
    for (int c = 0; both && c < vectors * kLanes<T>; ++c) {
      if (!(column.hardest[c] > lists.least(first_column + c))) continue;
      for (int r = 0; r < rows; ++r)
        lists.add(first_column + c, value[std::int64_t(r) * stride + c]);
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
      if (row.hardest[r] > row_bounds.above[r]) range.add(row.hardest[r]);
    for (int c = 0; both && c < vectors * kLanes<T>; ++c)
      if (column.hardest[c] > column_bounds.above[c]) {
        range.add(column.hardest[c]);
        if (column_bounds.above[c] < range.least_column_threshold)
          range.least_column_threshold = column_bounds.above[c];
      }
    return range;
  }

  // After find_hardest: sums and counts. Writes the first `capacity` pairs that may weigh
  // something, row by row, and returns the number of all of those.
  int sum_kept(const Range& range, Pair<T>* pairs, int capacity) const {
    int count = 0;
    if constexpr (!general) {
      count = sum_logs(VectorForm<T, Shape::exponential>(form), range, pairs, capacity);
    } else {
      with_shape<T>(form, [&](auto shaped) {
        if constexpr (shaped.log_sum)
          count = sum_logs(shaped, range, pairs, capacity);
        else
          count = sum_plainly(shaped, pairs, capacity);
      });
    }
    return count;
  }

 private:
  static T below(const Bounds<T>& bounds, int r) { return general ? bounds.below[r] : T(0); }
  Vec<T> column_below(int v) const {
    return general ? load(column_bounds.below + v * kLanes<T>) : Vec<T>{};
  }
  static Vec<T> under(Vec<T> s, Vec<T> below) {
    if constexpr (!general) return s;
    return s < below ? s : broadcast(-kInfinity<T>);
  }
  static Mask<T> between(Vec<T> s, Vec<T> above, Vec<T> below) {
    Mask<T> kept = s > above;
    if (general) kept &= s < below;
    return kept;
  }

  template <class Shaped>
  int sum_logs(const Shaped& shaped, const Range& range, Pair<T>* pairs, int capacity) const {
    return shaped.spread(range.least, range.most) <= kSharedSpread<T>
               ? sum_logs<true>(shaped, range, pairs, capacity)
               : sum_logs<false>(shaped, range, pairs, capacity);
  }

  template <bool shared, class Shaped>
  int sum_logs(const Shaped& shaped, const Range& range, Pair<T>* pairs, int capacity) const {
    clear_columns();
    int count = 0;
    for (int r = 0; r < rows; ++r) {
      const T hardest = row.hardest[r];
      clear_row(r);
      if (nothing_kept(r, range)) continue;
      const T* values = value + std::int64_t(r) * stride;
      const Vec<T> above = broadcast(row_bounds.above[r]), cap = broadcast(below(row_bounds, r));
      Vec<T> sum = {}, moment = {};
      Mask<T> kept = {};
      for (int v = 0; v < vectors; ++v) {
        const int c = v * kLanes<T>;
        const Vec<T> s = load(values + c);
        const Mask<T> by_row = between(s, above, cap);
        Mask<T> either = by_row, by_column = {};
        if (both) {
          by_column = between(s, load(column_bounds.above + c), column_below(v));
          either |= by_column;
        }
        const std::uint32_t lanes = bits<T>(either);
        if (!lanes) continue;
        const Vec<T> e = exp<T>(shaped.relative(s, broadcast(shared ? range.most : hardest)));
        sum += by_row ? e : Vec<T>{};
        kept -= by_row;
        if (general) moment += by_row ? s : Vec<T>{};
        if (both) {
          Vec<T> column_e = e;
          if (!shared) column_e = exp<T>(shaped.relative(s, load(column.hardest + c)));
          add_to_columns(c, by_column, column_e, s);
        }
        list(lanes, s, r, c, pairs, capacity, count);
      }
      row.sum[r] = sum_lanes<T>(sum);
      row.kept[r] = sum_lanes_of_codes<T>(kept);
      if (general) row.moment[r] = sum_lanes<T>(moment);
    }
    if (shared) {
      refer_to_hardest(shaped, row, rows, range.most);
      if (both) refer_to_hardest(shaped, column, vectors * kLanes<T>, range.most);
    }
    return count;
  }

  template <class Shaped>
  int sum_plainly(const Shaped& shaped, Pair<T>* pairs, int capacity) const {
    clear_columns();
    int count = 0;
    for (int r = 0; r < rows; ++r) {
      clear_row(r);
      const T* values = value + std::int64_t(r) * stride;
      const Vec<T> above = broadcast(row_bounds.above[r]), cap = broadcast(below(row_bounds, r));
      const Vec<T> offset = broadcast(row_bounds.offset[r]);
      Vec<T> sum = {}, moment = {};
      Mask<T> kept = {};
      for (int v = 0; v < vectors; ++v) {
        const int c = v * kLanes<T>;
        const Vec<T> s = load(values + c);
        const Mask<T> by_row = between(s, above, cap);
        Mask<T> either = by_row, by_column = {};
        if (both) {
          by_column = between(s, load(column_bounds.above + c), column_below(v));
          either |= by_column;
        }
        if (!bits<T>(either)) continue;
        const MassAndSlope<T> of_row = shaped.add(s, offset);
        sum += by_row ? of_row.mass : Vec<T>{};
        moment += by_row ? of_row.slope : Vec<T>{};
        kept -= by_row;
        if (both) {
          MassAndSlope<T> of_column = of_row;
          if (!same_offsets) of_column = shaped.add(s, load(column_bounds.offset + c));
          add_to_columns(c, by_column, of_column.mass, of_column.slope);
        }
        list(bits<T>(either & shaped.active(s)), s, r, c, pairs, capacity, count);
      }
      row.sum[r] = sum_lanes<T>(sum);
      row.kept[r] = sum_lanes_of_codes<T>(kept);
      row.moment[r] = sum_lanes<T>(moment);
    }
    return count;
  }

  // Of a general kind columns may keep what is above the bound of the row.
  bool nothing_kept(int r, const Range& range) const {
    const T hardest = row.hardest[r];
    if (hardest > row_bounds.above[r]) return false;
    return !both || (!general && !(hardest > range.least_column_threshold));
  }
  void clear_row(int r) const {
    row.sum[r] = T(0);
    row.kept[r] = 0;
    if (general) row.moment[r] = T(0);
  }
  void clear_columns() const {
    if (both) column.clear_sums(vectors * kLanes<T>);
  }
  void add_to_columns(int c, Mask<T> kept, Vec<T> sum, Vec<T> moment) const {
    store(column.sum + c, load(column.sum + c) + (kept ? sum : Vec<T>{}));
    store(column.kept + c, load_codes<T>(column.kept + c) - kept);
    if (general) store(column.moment + c, load(column.moment + c) + (kept ? moment : Vec<T>{}));
  }
  // From exp(z - z of the reference) to exp(z - z of the hardest). Arrays are padded.
  template <class Shaped>
  static void refer_to_hardest(const Shaped& shaped, const Cells<T>& cells, int count,
                               T reference) {
    for (int i = 0; i < count; i += kLanes<T>) {
      const Vec<T> sum = load(cells.sum + i);
      const Vec<T> factor =
          exp<T>(shaped.relative_to_hardest(broadcast(reference), load(cells.hardest + i)));
      store(cells.sum + i, sum > T(0) ? sum * factor : Vec<T>{});
    }
  }
};

}  // namespace msk::MSK_ISA
