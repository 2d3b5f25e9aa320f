// The barriers of the sources: those that this process has met, and one that it is to pass by.
//
// With HOST_GPU_WITHOUT=file.cuh:line in the environment a launch runs as if that barrier were not
// in the source; of one of the grid, that of each block is left.
#pragma once

namespace host_gpu {

void read_barrier_to_leave_out();  // from the environment, before a launch
// `kind`: grid or block. Whether to go on as if it were not there.
bool left_out(const char* kind, const char* file, int line);

// A line for each barrier met: its kind, file.cuh:line.
extern "C" __attribute__((visibility("default"))) const char* host_gpu_barriers();

}  // namespace host_gpu
