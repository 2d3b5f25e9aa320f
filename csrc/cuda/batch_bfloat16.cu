#include "cuda/batch.cuh"
#include "cuda/instances.h"

void msk::gpu::batch_bfloat16(const Problem& problem, int device, void* stream) {
  launch_batch<HalfProduct<BFloat16>, BFloat16>(problem, device, stream);
}
