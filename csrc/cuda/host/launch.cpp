#include <stdexcept>
#include <string>

#include "cuda/host/instances.h"
#include "cuda/host/plan.h"
#include "cuda/host/versions.h"

namespace msk::gpu {

namespace {

Launch* one_of(const Problem& problem, Launch* batch, Launch* small, Launch* tiled) {
  return problem.by_tiles ? tiled : problem.is_small ? small : batch;
}

Launch* chosen(const Problem& p) {
  switch (p.dtype) {
    case DType::float16:
      return one_of(p, batch::float16, small::float16, tiled::float16);
    case DType::bfloat16:
      return one_of(p, batch::bfloat16, small::bfloat16, tiled::bfloat16);
    case DType::float64:
      return one_of(p, batch::float64, small::float64, tiled::float64);
    case DType::float32:
      if (p.precision == Precision::highest)
        return one_of(p, batch::float32, small::float32, tiled::float32);
      if (p.precision == Precision::high) return one_of(p, batch::tf32, small::tf32, tiled::tf32);
      return one_of(p, batch::rounded, small::rounded, tiled::rounded);
  }
  throw std::invalid_argument("dtype: expected one of DType, got " + std::to_string(int(p.dtype)));
}

}  // namespace

void launch(const Problem& problem, int device, void* stream) {
  chosen(problem)(problem, device, stream);
}

std::pair<int, int> versions() { return ask_versions(); }

}  // namespace msk::gpu
