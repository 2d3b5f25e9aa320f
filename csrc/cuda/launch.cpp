#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/instances.h"
#include "cuda/plan.h"

namespace msk::gpu {

namespace {

void launch_one(const Problem& problem, int device, void* stream) {
  switch (problem.dtype) {
    case DType::float16:
      return launch_float16(problem, device, stream);
    case DType::bfloat16:
      return launch_bfloat16(problem, device, stream);
    case DType::float64:
      return launch_float64(problem, device, stream);
    case DType::float32:
      if (problem.precision == Precision::highest) return launch_float32(problem, device, stream);
      if (problem.precision == Precision::high) return launch_tf32(problem, device, stream);
      return launch_rounded(problem, device, stream);
  }
  throw std::invalid_argument("dtype: expected one of DType, got " +
                              std::to_string(int(problem.dtype)));
}

}  // namespace

void launch(const Problem& problem, int device, void* stream) {
  launch_one(problem, device, stream);
  if (!problem.d_columns) return;
  // Candidates that learn own their gradient in turn: the sides change places.
  Problem other = problem;
  std::swap(other.rows, other.columns);
  std::swap(other.row_room, other.column_room);
  other.job = Job::gradient;
  other.terms = column_term;
  other.prepared = true;
  other.d_rows = problem.d_columns;
  launch_one(other, device, stream);
}

}  // namespace msk::gpu
