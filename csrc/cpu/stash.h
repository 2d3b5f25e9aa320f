// What is known of each tile between the phases, and the memory for it.
#pragma once

#include <atomic>

#include "scan.h"

namespace msk::MSK_ISA {

// Lives in 64-byte units of one block; 0 is "nothing kept here".
struct TileState {
  enum class Holds : std::uint8_t { nothing, similarities, pairs };
  std::int32_t kept = 0;    // pairs that some anchor keeps
  std::uint32_t place = 0;  // in units, from the block's start
  Holds holds = Holds::nothing;
};

// Hands out memory until it is spent. Who gets it depends on timing, what is computed does not:
// a tile that gets none is computed again, to the same bits.
class Stash {
 public:
  void open(std::byte* block, std::int64_t bytes) {
    block_ = block;
    units_ = bytes / 64;
  }

  void empty() { next_.store(0, std::memory_order_relaxed); }

  bool reserve(std::int64_t bytes, std::uint32_t& place) {
    const std::int64_t units = (bytes + 63) / 64;
    if (next_.load(std::memory_order_relaxed) + units > units_) return false;
    const std::int64_t at = next_.fetch_add(units, std::memory_order_relaxed);
    place = std::uint32_t(at);
    return at + units <= units_;
  }
  template <typename U>
  U* at(std::uint32_t place) const {
    return reinterpret_cast<U*>(block_ + std::int64_t(place) * 64);
  }

 private:
  std::byte* block_ = nullptr;
  std::int64_t units_ = 0;
  std::atomic<std::int64_t> next_{0};
};

// A tile with more kept pairs than this is multiplied as a whole: a list of pairs reads memory
// where the product of a tile computes from registers.
inline std::int32_t most_listed(const Grid& grid) { return std::int32_t(grid.tile_size() / 4); }

}  // namespace msk::MSK_ISA
