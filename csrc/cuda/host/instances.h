// The paths, each compiled once for each pair of input and operand types: see instance.cu.
#pragma once

#include "cuda/pairs/problem.h"

namespace msk::gpu {

using Launch = void(const Problem& problem, int device, void* stream);

namespace batch {
Launch float16, bfloat16, float64;
// Of float32 embeddings: as exact as they are, as tf32, rounded to bfloat16.
Launch float32, tf32, rounded;
}  // namespace batch

namespace small {
Launch float16, bfloat16, float64, float32, tf32, rounded;
}  // namespace small

namespace tiled {
Launch float16, bfloat16, float64, float32, tf32, rounded;
}  // namespace tiled

}  // namespace msk::gpu
