#include "cuda/instances.h"
#include "cuda/tiled.cuh"

void msk::gpu::tiled_tf32(const Problem& problem, int device, void* stream) {
  launch_tiled<Tf32Product<false>, float>(problem, device, stream);
}
