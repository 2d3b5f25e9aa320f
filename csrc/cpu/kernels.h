// What a build of the kernels for one instruction set offers.
#pragma once

#include "problem.h"

namespace msk {

struct Kernels {
  const char* instruction_set;
  // Fills threads, stash_bytes and workspace_bytes, given the most threads and the bytes that may
  // go to bookkeeping and stash.
  void (*plan)(Problem&, std::int64_t budget);
  void (*solve)(const Problem&);
  // Loss of each row from its statistics, to the bits that loss_and_gradient gives.
  void (*row_loss)(DType, const Rules&, const TermInput& statistics, void* out, std::int64_t count);
  // The vector exponential, for the test of its error: float32 or float64, any count.
  void (*exp)(DType, const void* in, void* out, std::int64_t count);
};

namespace avx512 {
Kernels kernels();
}
namespace avx2 {
Kernels kernels();
}
namespace baseline {
Kernels kernels();
}

}  // namespace msk
