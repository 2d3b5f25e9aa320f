// The triplet loss compares every kept negative of an anchor with every kept positive: an anchor
// lists a threshold for each positive, and counts the negatives that reach it.
//
// Slots are as many as a row is deep, or so: lists take no more than a few copies of the rows. A
// class with more candidates goes in several rounds over all pairs.
#pragma once

#include "carve.h"
#include "simd.h"

namespace msk::MSK_ISA {

constexpr int kLeastRanks = 64, kMostRanks = 512;

inline std::int64_t ranks_for(std::int64_t depth, std::int64_t largest_class) {
  std::int64_t most = depth < kLeastRanks ? kLeastRanks : depth;
  most = most < kMostRanks ? most : kMostRanks;
  return largest_class < most ? largest_class : most;
}

// Of a block of anchors, [slot][anchor]: the candidates of its class are an anchor's slots.
template <typename T>
struct RankBlock {
  int slots;                        // 0: the side has no lists
  std::int64_t stride;              // from slot to slot
  std::int64_t passed;              // candidates of each class that earlier rounds had
  T* threshold;                     // +inf where there is no kept positive
  Code<T>* reached;                 // kept negatives at or above the threshold
  const std::int32_t* class_first;  // an anchor's first candidate of its class

  std::int64_t at(std::int64_t slot, int anchor) const { return slot * stride + anchor; }
  // Slot of a candidate, which `has` says to exist in this round.
  std::int64_t slot(int anchor, std::int64_t candidate) const {
    return candidate - class_first[anchor] - passed;
  }
  bool has(std::int64_t slot) const { return slot >= 0 && slot < slots; }

  T least(int anchor) const {
    T least = kInfinity<T>;
    for (int k = 0; k < slots; ++k)
      least = threshold[at(k, anchor)] < least ? threshold[at(k, anchor)] : least;
    return least;
  }
  // Of all its thresholds, in this round.
  T all_reached(int anchor) const {
    T number = T(0);
    for (int k = 0; k < slots; ++k) number += T(reached[at(k, anchor)]);
    return number;
  }
  void clear() const {
    for (std::int64_t i = 0; i < slots * stride; ++i) threshold[i] = kInfinity<T>, reached[i] = 0;
  }
  // Of an integer any order of additions gives the same: several threads may add at once.
  void add(int slot, int anchor, Code<T> count) const {
    if (count) __atomic_fetch_add(&reached[at(slot, anchor)], count, __ATOMIC_RELAXED);
  }
};

// Of one side.
template <typename T>
class Ranks {
 public:
  int slots = 0;            // in use
  std::int64_t passed = 0;  // see RankBlock
  std::int32_t* class_first = nullptr;

  Ranks() = default;
  Ranks(std::int64_t padded, int block, int capacity, Carver& carver)
      : class_first(carver.take<std::int32_t>(capacity ? padded : 0)),
        block_(block),
        capacity_(capacity),
        threshold_(carver.take<T>(padded * capacity)),
        reached_(carver.take<Code<T>>(padded * capacity)) {}

  // `first`: the first anchor of a block.
  RankBlock<T> block_at(std::int64_t first) const {
    if (!slots) return {};
    const std::int64_t at = first * capacity_;
    return {slots, block_, passed, threshold_ + at, reached_ + at, class_first + first};
  }

  // The next round, of classes with up to `most` candidates.
  void begin(bool first, std::int64_t most) {
    passed = first ? 0 : passed + slots;
    slots = int(most - passed < capacity_ ? most - passed : capacity_);
  }

 private:
  int block_ = 0, capacity_ = 0;
  T* threshold_ = nullptr;
  Code<T>* reached_ = nullptr;
};

}  // namespace msk::MSK_ISA
