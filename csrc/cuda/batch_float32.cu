#include "cuda/batch.cuh"
#include "cuda/instances.h"

void msk::gpu::batch_float32(const Problem& problem, int device, void* stream) {
  launch_batch<Tf32Product<true>, float>(problem, device, stream);
}
