// Dense integer codes for the labels or ids of one side.
#pragma once

#include <cstdint>
#include <vector>

namespace msk {

// Equal values have equal codes 0, 1, ...; a greater value has a greater code.
class Codes {
 public:
  Codes(const std::int64_t* values, std::int64_t count);
  ~Codes();  // not inline: this file is compiled once, for every machine
  std::int32_t size() const { return size_; }
  // The code of a value, or size() if it is none of those given.
  std::int32_t operator()(std::int64_t value) const;

 private:
  std::int32_t size_ = 0;
  std::int64_t least_ = 0;
  std::vector<std::int32_t> table_;   // code of least_ + k, where values lie close together
  std::vector<std::int64_t> sorted_;  // distinct values otherwise
};

// How often the most frequent of them occurs.
std::int32_t largest_class(const std::int64_t* values, std::int64_t count);

// Stable counting sort: code[k] ascends, order[k] is the sample that it belongs to.
void sort_by_code(const Codes& codes, const std::int64_t* values, std::int64_t count,
                  std::int32_t* order, std::int32_t* code);
void sort_by_code(const Codes& codes, const std::int64_t* values, std::int64_t count,
                  std::int32_t* order, std::int64_t* code);

}  // namespace msk
