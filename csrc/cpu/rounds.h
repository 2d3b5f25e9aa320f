// The rounds of a ranked loss: some candidates of every class at a time (ranks.h).
#pragma once

#include <atomic>

#include "workspace.h"

namespace msk::MSK_ISA {

// Every thread of a parallel region calls these.
template <typename T>
class Rounds {
 public:
  explicit Rounds(Workspace<T>& w) : w_(w) {}

  void find_classes() {
#pragma omp for schedule(static)
    for (std::int64_t k = 0; k < w_.rows.axis.padded(); ++k) {
      const std::int64_t first = columns_under(w_.rows.label[k]);
      w_.rows.ranks.class_first[k] = std::int32_t(first);
      if (k >= w_.rows.axis.count) continue;
      const std::int64_t count = columns_under(w_.rows.label[k] + 1) - first;
      std::int64_t most = most_of_a_class_.load(std::memory_order_relaxed);
      while (count > most && !most_of_a_class_.compare_exchange_weak(most, count)) {
      }
    }
  }
  // Whether it is the last one.
  bool begin(bool first) {
    const Ranks<T>& ranks = w_.rows.ranks;
    const std::int64_t most = most_of_a_class_.load(std::memory_order_relaxed);
#pragma omp single
    {
      w_.rows.ranks.begin(first, most);
      w_.stash.empty();
    }
#pragma omp for schedule(static)
    for (int b = 0; b < w_.rows.axis.blocks; ++b) ranks.block_at(w_.rows.first(b)).clear();
    return ranks.passed + ranks.slots >= most;
  }

 private:
  // The number of columns whose label is under this one. No function of the standard library: see
  // simd.h.
  std::int64_t columns_under(Code<T> label) const {
    std::int64_t low = 0, high = w_.columns().axis.count;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (w_.columns().label[middle] < label)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

  Workspace<T>& w_;
  std::atomic<std::int64_t> most_of_a_class_{0};
};

}  // namespace msk::MSK_ISA
