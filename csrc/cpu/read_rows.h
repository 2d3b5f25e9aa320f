// Rows of the caller in the compute type, divided by their norms if asked. A side copies them once,
// or, where its rows are candidates alone, which may be a memory of millions, reads those of a tile
// whenever it needs them: to the same bits.
#pragma once

#include "side.h"

namespace msk::MSK_ISA {

// Elements of a row that a view may have, where the side does not hold its rows.
constexpr int kViewedElements = 192;

inline float half_to_float(std::uint16_t h) {
  // No arithmetic on a denormal of float: the caller's thread may flush those to 0.
  const float denormal = float(h & 0x03ff) * 0x1p-24f;
  std::uint32_t out;
  std::memcpy(&out, &denormal, 4);
  if (h & 0x7c00) out = (std::uint32_t(h & 0x7fff) << 13) + (112u << 23);
  if ((h & 0x7c00) == 0x7c00) out |= 0x7f800000u;
  out |= std::uint32_t(h & 0x8000) << 16;
  float value;
  std::memcpy(&value, &out, 4);
  return value;
}
inline float bfloat16_to_float(std::uint16_t h) {
  const std::uint32_t wide = std::uint32_t(h) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// `width` elements of the caller's array, from `at` on.
template <typename T>
void read_elements(const void* x, DType dtype, std::int64_t at, std::int64_t width, T* out) {
  const auto read = [&](auto from, auto convert) {
    from += at;
    for (std::int64_t d = 0; d < width; ++d) out[d] = T(convert(from[d]));
  };
  const auto as_it_is = [](auto number) { return number; };
  if (dtype == DType::float64)
    read(static_cast<const double*>(x), as_it_is);
  else if (dtype == DType::float32)
    read(static_cast<const float*>(x), as_it_is);
  else if (dtype == DType::float16)
    read(static_cast<const std::uint16_t*>(x), half_to_float);
  else
    read(static_cast<const std::uint16_t*>(x), bfloat16_to_float);
}

// In double. The row is padded with zeros to a multiple of eight.
template <typename T>
double sum_of_squares(const T* row, std::int64_t depth) {
  double lanes[8] = {};
  for (std::int64_t d = 0; d < depth; d += 8)
    for (int lane = 0; lane < 8; ++lane) lanes[lane] += double(row[d + lane]) * row[d + lane];
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return sum;
}

// Leaves the row divided by `first`, but not by its norm.
template <typename T>
RowScale<T> scale_of(T* row, std::int64_t depth, bool normalize) {
  double square = sum_of_squares(row, depth);
  RowScale<T> scale{true, T(1), T(std::sqrt(square))};
  if (std::isfinite(scale.norm)) return scale;
  T most = T(1);  // elements decide: of finite ones the square overflowed
  for (std::int64_t d = 0; d < depth; ++d) {
    if (!std::isfinite(row[d])) return {false, T(1), T(0)};
    most = std::fabs(row[d]) > most ? std::fabs(row[d]) : most;
  }
  if (!normalize) return scale;
  for (std::int64_t d = 0; d < depth; ++d) row[d] /= most;
  return {true, most, T(std::sqrt(sum_of_squares(row, depth)))};
}

template <typename T>
T divisor_of(T norm) {
  return norm > T(kNormFloor) ? norm : T(kNormFloor);
}

template <typename T>
void divide(T* row, std::int64_t width, T divisor) {
  for (std::int64_t d = 0; d < width; ++d) row[d] /= divisor;
}

// Elements from..from + width of row k, before any division; rows past the count are 0.
template <typename T>
void read_part(const Side<T>& side, std::int64_t k, std::int64_t from, std::int64_t width, T* out) {
  if (k < side.axis.count)
    read_elements(side.in.x, side.in.dtype, side.order[k] * side.in.row_stride + from, width, out);
  else
    for (std::int64_t d = 0; d < width; ++d) out[d] = T(0);
}

// Looks at row k once, and copies it if the side holds its rows; if not, `room` is for one row.
template <typename T>
void look_at_row(Side<T>& side, std::int64_t k, std::int64_t depth, T* room) {
  T* const row = side.held ? side.x + k * side.stride : room;
  read_part(side, k, 0, depth, row);
  for (std::int64_t d = depth; d < side.stride; ++d) row[d] = T(0);
  const RowScale<T> scale = scale_of(row, depth, side.in.normalize);
  side.norm[k] = scale.norm * scale.first;
  if (!scale.finite) side.poisoned[k] = 1;
  if (!side.held)
    side.scales[k] = scale;
  else if (!scale.finite)
    for (std::int64_t d = 0; d < depth; ++d) row[d] = T(0);
  else if (side.in.normalize)
    divide(row, depth, divisor_of(scale.norm));
}

// The same elements that look_at_row would have copied, up to a whole vector.
template <typename T>
void read_scaled(const Side<T>& side, std::int64_t k, std::int64_t from, int width, T* out) {
  const RowScale<T>* scale = k < side.axis.count ? side.scales + k : nullptr;
  int filled = 0;
  if (scale && scale->finite) {
    read_part(side, k, from, width, out);
    if (side.in.normalize) {
      if (scale->first != T(1)) divide(out, width, scale->first);
      divide(out, width, divisor_of(scale->norm));
    }
    filled = width;
  }
  for (; filled % kLanes<T> || filled < width; ++filled) out[filled] = T(0);
}

// Where rows begin, and how far apart they are.
template <typename T>
struct RowsView {
  const T* x;
  std::int64_t stride;
};

// Elements from..from + width of `count` rows from `first` on; read into `room` if not held.
template <typename T>
RowsView<T> view_rows(const Side<T>& side, std::int64_t first, int count, std::int64_t from,
                      int width, T* room) {
  if (side.held) return {side.x + first * side.stride + from, side.stride};
  for (int r = 0; r < count; ++r)
    read_scaled(side, first + r, from, width, room + r * kViewedElements);
  return {room, kViewedElements};
}

}  // namespace msk::MSK_ISA
