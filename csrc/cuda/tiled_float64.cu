#include "cuda/instances.h"
#include "cuda/tiled.cuh"

void msk::gpu::tiled_float64(const Problem& problem, int device, void* stream) {
  launch_tiled<DoubleProduct, double>(problem, device, stream);
}
