#include "cuda/batch.cuh"
#include "cuda/instances.h"

void msk::gpu::batch_float64(const Problem& problem, int device, void* stream) {
  launch_batch<DoubleProduct, double>(problem, device, stream);
}
