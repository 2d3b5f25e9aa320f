// Both sides in label order, seen by tiles. Positives lie in the few tiles whose labels overlap.
#pragma once

#include "cuda/pairs/side.cuh"

namespace msk::gpu {

// Rows of a tile, and its columns.
template <class P>
constexpr int kTile = P::Shape::kRows;

// Blocks with a product that share a multiprocessor: three where it keeps 4 bytes a pair, which
// leaves a thread 168 registers.
template <class P>
constexpr int kResident =
    kThreads<P> <= 128 &&
            sizeof(typename P::Sums) == sizeof(TensorSums<P::kRowParts, P::kColumnParts>) &&
            sizeof(typename P::Scalar) == 4
        ? 3
        : 2;

struct Range {
  std::int64_t first, last;
  MSK_DEVICE Range part(std::int64_t k, std::int64_t parts) const {
    return {first + (last - first) * k / parts, first + (last - first) * (k + 1) / parts};
  }
};

template <class P>
struct OrderedPairs : Pairs<P> {
  using Scalar = typename P::Scalar;
  std::int64_t row_tiles, column_tiles;

  MSK_DEVICE explicit OrderedPairs(const Problem& p)
      : Pairs<P>(p),
        row_tiles(padded<P>(this->rows.count) / kTile<P>),
        column_tiles(padded<P>(this->columns.count) / kTile<P>) {}

  // Tiles of columns with a label between the least and the greatest of a tile of rows.
  MSK_DEVICE Range overlapping(std::int64_t row_tile) const {
    const std::int64_t low = least(this->rows, row_tile), high = greatest(this->rows, row_tile);
    const std::int64_t count = this->columns.count;
    const std::int64_t first = below(this->columns, 0, count, low, false);
    const std::int64_t last = below(this->columns, first, count, high, true);
    return {first / kTile<P>, last > first ? (last + kTile<P> - 1) / kTile<P> : first / kTile<P>};
  }
  // Whether some pair of the two tiles may be of one class.
  MSK_DEVICE bool overlap(std::int64_t row_tile, std::int64_t column_tile) const {
    const std::int64_t low = least(this->columns, column_tile);
    const std::int64_t high = greatest(this->columns, column_tile);
    if (least(this->rows, row_tile) > high || greatest(this->rows, row_tile) < low) return false;
    if (this->self) return true;
    // Few rows among many columns: their labels have gaps as wide as whole tiles.
    const std::int64_t first = row_tile * kTile<P>, end = first + kTile<P>;
    const std::int64_t last = end < this->rows.count ? end : this->rows.count;
    const std::int64_t found = below(this->rows, first, last, low, false);
    return found < last && this->rows.labels[found] <= high;
  }
  MSK_DEVICE bool one_class(std::int64_t row_tile, std::int64_t column_tile) const {
    const std::int64_t label = least(this->rows, row_tile);
    return label == greatest(this->rows, row_tile) && label == least(this->columns, column_tile) &&
           label == greatest(this->columns, column_tile);
  }
  MSK_DEVICE bool present(std::int64_t i, std::int64_t j) const {
    return i < this->rows.count && j < this->columns.count;
  }
  // Tiles without padding whose pairs are all of them negatives, of which none need be asked.
  MSK_DEVICE bool interior(std::int64_t row_tile, std::int64_t column_tile) const {
    return (row_tile + 1) * kTile<P> <= this->rows.count &&
           (column_tile + 1) * kTile<P> <= this->columns.count && apart(row_tile, column_tile);
  }
  MSK_DEVICE bool apart(std::int64_t row_tile, std::int64_t column_tile) const {
    return !this->rows.ids && !overlap(row_tile, column_tile);
  }
  // Of pairs that are present.
  MSK_DEVICE bool negative(std::int64_t i, std::int64_t j) const {
    return this->rows.labels[i] != this->columns.labels[j] && !this->self_pair(i, j);
  }
  MSK_DEVICE bool positive(std::int64_t i, std::int64_t j, Scalar s) const {
    return this->rows.labels[i] == this->columns.labels[j] && !this->self_pair(i, j) &&
           s < this->loss.max_positive_similarity;
  }

 private:
  MSK_DEVICE static std::int64_t least(const Side<P>& side, std::int64_t tile) {
    return side.labels[tile * kTile<P>];
  }
  MSK_DEVICE static std::int64_t greatest(const Side<P>& side, std::int64_t tile) {
    const std::int64_t last = tile * kTile<P> + kTile<P> - 1;
    return side.labels[last < side.count ? last : side.count - 1];
  }
  // The first place of a part of a side whose label is not below this one, or is above it.
  MSK_DEVICE static std::int64_t below(const Side<P>& side, std::int64_t first, std::int64_t last,
                                       std::int64_t label, bool or_equal) {
    while (first < last) {
      const std::int64_t middle = (first + last) / 2, found = side.labels[middle];
      if (found < label || (or_equal && found == label))
        first = middle + 1;
      else
        last = middle;
    }
    return first;
  }
};

}  // namespace msk::gpu
