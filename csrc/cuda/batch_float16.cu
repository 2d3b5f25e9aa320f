#include "cuda/batch.cuh"
#include "cuda/instances.h"

void msk::gpu::batch_float16(const Problem& problem, int device, void* stream) {
  launch_batch<HalfProduct<Half>, Half>(problem, device, stream);
}
