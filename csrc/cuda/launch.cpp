#include <stdexcept>
#include <string>

#include "cuda/instances.h"
#include "cuda/plan.h"
#include "cuda/versions.h"

namespace msk::gpu {

namespace {

using Launch = void (*)(const Problem& problem, int device, void* stream);

Launch either(const Problem& problem, Launch batch, Launch tiled) {
  return problem.by_tiles ? tiled : batch;
}

Launch chosen(const Problem& p) {
  switch (p.dtype) {
    case DType::float16:
      return either(p, batch_float16, tiled_float16);
    case DType::bfloat16:
      return either(p, batch_bfloat16, tiled_bfloat16);
    case DType::float64:
      return either(p, batch_float64, tiled_float64);
    case DType::float32:
      if (p.precision == Precision::highest) return either(p, batch_float32, tiled_float32);
      if (p.precision == Precision::high) return either(p, batch_tf32, tiled_tf32);
      return either(p, batch_rounded, tiled_rounded);
  }
  throw std::invalid_argument("dtype: expected one of DType, got " + std::to_string(int(p.dtype)));
}

}  // namespace

void launch(const Problem& problem, int device, void* stream) {
  chosen(problem)(problem, device, stream);
}

std::pair<int, int> versions() { return ask_versions(); }

}  // namespace msk::gpu
