// Cuts arrays from one block of memory; with a null block it only measures.
#pragma once

#include <cstddef>
#include <cstdint>

namespace msk::MSK_ISA {

class Carver {
 public:
  explicit Carver(std::byte* block) : block_(block) {}

  // 64 bytes: a cache line, and the alignment of the widest vector.
  template <typename U>
  U* take(std::int64_t count) {
    const std::int64_t at = used_;
    used_ += (count * std::int64_t(sizeof(U)) + 63) / 64 * 64;
    return block_ ? reinterpret_cast<U*>(block_ + at) : nullptr;
  }
  std::int64_t used() const { return used_; }

 private:
  std::byte* block_;
  std::int64_t used_ = 0;
};

}  // namespace msk::MSK_ISA
