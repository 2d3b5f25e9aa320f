// The k hardest negatives of each anchor, where the k-th bounds what mining keeps.
#pragma once

#include "carve.h"
#include "simd.h"

namespace msk::MSK_ISA {

// A list an anchor, which any thread may add to: the greatest values stay whatever the order they
// come in, so the bits do not depend on it.
template <typename T>
class HardestLists {
 public:
  HardestLists() = default;
  // One value needs no list.
  HardestLists(std::int64_t anchors, int length, Carver& carver)
      : length_(length > 1 ? length : 0), values_(carver.take<T>(anchors * length_)) {}

  bool exist() const { return length_ > 0; }

  void clear(std::int64_t anchor) const {
    for (int k = 0; k < length_; ++k) list(anchor)[k] = -kInfinity<T>;
  }
  // The k-th hardest so far; -inf of fewer.
  T least(std::int64_t anchor) const {
    T least = kInfinity<T>;
    for (int k = 0; k < length_; ++k) least = lesser(least, read(list(anchor) + k));
    return least;
  }
  void add(std::int64_t anchor, T value) const {
    T* const values = list(anchor);
    for (;;) {
      int place = 0;
      T least = read(values);
      for (int k = 1; k < length_; ++k) {
        const T other = read(values + k);
        if (other < least) least = other, place = k;
      }
      // Values only grow: what was the least still is, if it is still there.
      if (!(value > least) || __atomic_compare_exchange(values + place, &least, &value, false,
                                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        return;
    }
  }

 private:
  T* list(std::int64_t anchor) const { return values_ + anchor * length_; }
  static T lesser(T a, T b) { return a < b ? a : b; }
  static T read(const T* at) {
    T value;
    __atomic_load(at, &value, __ATOMIC_RELAXED);
    return value;
  }

  int length_ = 0;
  T* values_ = nullptr;
};

}  // namespace msk::MSK_ISA
