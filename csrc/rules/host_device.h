// The mark of functions that run on both sides.
#pragma once

#if defined(__CUDACC__)
#define MSK_HOST_DEVICE __host__ __device__
#else
// Always inlined: the CPU kernels are built once per instruction set, and a function that several
// builds left out of line would be merged by the linker, perhaps into one the machine cannot run.
#define MSK_HOST_DEVICE __attribute__((always_inline))
#endif
