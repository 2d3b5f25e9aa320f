// In the place of csrc/cuda/instance.cu: compiles in no time, launch.cuh with a kernel that does
// nothing.
#include "cuda/core/launch.cuh"
#include "cuda/core/ptx.cuh"
#include "cuda/host/instances.h"

namespace msk::gpu {

namespace batch {
template <auto kernel>
void launch(const Problem& problem, int device, void* stream) {
  launch_cooperative<kernel>("nothing", problem.blocks, 128, 1024, device, stream, problem);
}
}  // namespace batch

namespace tiled {
template <auto kernel>
void launch(const Problem& problem, int device, void* stream) {
  launch_blocks<kernel>("nothing", 300, 128, 1024, device, stream, problem);
}
}  // namespace tiled

namespace MSK_PATH {
MSK_KERNEL(128, 2) nothing(const MSK_PARAMETER Problem) {}

void MSK_OPERAND(const Problem& problem, int device, void* stream) {
  launch<nothing>(problem, device, stream);
}
}  // namespace MSK_PATH

}  // namespace msk::gpu
