#include "cuda/batch.cuh"
#include "cuda/instances.h"

void msk::gpu::batch_rounded(const Problem& problem, int device, void* stream) {
  launch_batch<HalfProduct<BFloat16>, float>(problem, device, stream);
}
