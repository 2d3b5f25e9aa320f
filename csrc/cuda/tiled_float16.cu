#include "cuda/instances.h"
#include "cuda/tiled.cuh"

void msk::gpu::tiled_float16(const Problem& problem, int device, void* stream) {
  launch_tiled<HalfProduct<Half>, Half>(problem, device, stream);
}
