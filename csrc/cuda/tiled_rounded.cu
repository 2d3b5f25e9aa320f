#include "cuda/instances.h"
#include "cuda/tiled.cuh"

void msk::gpu::tiled_rounded(const Problem& problem, int device, void* stream) {
  launch_tiled<HalfProduct<BFloat16>, float>(problem, device, stream);
}
