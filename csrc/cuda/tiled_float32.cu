#include "cuda/instances.h"
#include "cuda/tiled.cuh"

void msk::gpu::tiled_float32(const Problem& problem, int device, void* stream) {
  launch_tiled<Tf32Product<true>, float>(problem, device, stream);
}
