#include "cuda/instances.h"
#include "cuda/tiled.cuh"

void msk::gpu::tiled_bfloat16(const Problem& problem, int device, void* stream) {
  launch_tiled<HalfProduct<BFloat16>, BFloat16>(problem, device, stream);
}
