#include <stdexcept>
#include <string>

#include "cuda/host/instances.h"
#include "cuda/host/plan.h"
#include "cuda/host/versions.h"

namespace msk::gpu {

namespace {

Launch* either(const Problem& problem, Launch* batch, Launch* tiled) {
  return problem.by_tiles ? tiled : batch;
}

Launch* chosen(const Problem& p) {
  switch (p.dtype) {
    case DType::float16:
      return either(p, batch::float16, tiled::float16);
    case DType::bfloat16:
      return either(p, batch::bfloat16, tiled::bfloat16);
    case DType::float64:
      return either(p, batch::float64, tiled::float64);
    case DType::float32:
      if (p.precision == Precision::highest) return either(p, batch::float32, tiled::float32);
      if (p.precision == Precision::high) return either(p, batch::tf32, tiled::tf32);
      return either(p, batch::rounded, tiled::rounded);
  }
  throw std::invalid_argument("dtype: expected one of DType, got " + std::to_string(int(p.dtype)));
}

}  // namespace

void launch(const Problem& problem, int device, void* stream) {
  chosen(problem)(problem, device, stream);
}

std::pair<int, int> versions() { return ask_versions(); }

}  // namespace msk::gpu
