#include "cuda/batch.cuh"
#include "cuda/instances.h"

void msk::gpu::batch_tf32(const Problem& problem, int device, void* stream) {
  launch_batch<Tf32Product<false>, float>(problem, device, stream);
}
