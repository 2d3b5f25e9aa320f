#include "codes.h"

#include <algorithm>

namespace msk {

Codes::Codes(const std::int64_t* values, std::int64_t count) {
  if (count == 0) return;
  const auto [least, most] = std::minmax_element(values, values + count);
  least_ = *least;
  // Unsigned: the distance of two int64 may exceed int64.
  const std::uint64_t range = std::uint64_t(*most) - std::uint64_t(least_);
  if (range < std::uint64_t(4 * count + 1024)) {
    table_.assign(range + 1, 0);
    for (std::int64_t i = 0; i < count; ++i) table_[values[i] - least_] = 1;
    for (std::int32_t& entry : table_) entry = entry ? size_++ : -1;
    return;
  }
  sorted_.assign(values, values + count);
  std::sort(sorted_.begin(), sorted_.end());
  sorted_.erase(std::unique(sorted_.begin(), sorted_.end()), sorted_.end());
  size_ = std::int32_t(sorted_.size());
}

Codes::~Codes() = default;

std::int32_t Codes::operator()(std::int64_t value) const {
  if (sorted_.empty()) {
    const std::uint64_t place = std::uint64_t(value) - std::uint64_t(least_);
    return value < least_ || place >= table_.size() || table_[place] < 0 ? size_ : table_[place];
  }
  const auto found = std::lower_bound(sorted_.begin(), sorted_.end(), value);
  return found == sorted_.end() || *found != value ? size_ : std::int32_t(found - sorted_.begin());
}

std::int32_t largest_class(const std::int64_t* values, std::int64_t count) {
  const Codes codes(values, count);
  std::vector<std::int32_t> counts(codes.size() + 1, 0);
  std::int32_t most = 0;
  for (std::int64_t i = 0; i < count; ++i) most = std::max(most, ++counts[codes(values[i])]);
  return most;
}

namespace {

template <typename Code>
void sort_into(const Codes& codes, const std::int64_t* values, std::int64_t count,
               std::int32_t* order, Code* code) {
  std::vector<std::int32_t> unsorted(count);
  std::vector<std::int32_t> start(codes.size() + 2, 0);
  for (std::int64_t i = 0; i < count; ++i) ++start[(unsorted[i] = codes(values[i])) + 1];
  for (std::size_t c = 1; c < start.size(); ++c) start[c] += start[c - 1];
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t place = start[unsorted[i]]++;
    order[place] = std::int32_t(i);
    code[place] = unsorted[i];
  }
}

}  // namespace

void sort_by_code(const Codes& codes, const std::int64_t* values, std::int64_t count,
                  std::int32_t* order, std::int32_t* code) {
  sort_into(codes, values, count, order, code);
}
void sort_by_code(const Codes& codes, const std::int64_t* values, std::int64_t count,
                  std::int32_t* order, std::int64_t* code) {
  sort_into(codes, values, count, order, code);
}

}  // namespace msk
