// What an nvcc and its host compiler must take before the kernels are worth a try.
#define _CG_LIMIT_INCLUDED_DEPENDENCIES
#include <cooperative_groups.h>

#include <string>

template <auto kept>
__global__ void check(int* out) {
  cooperative_groups::this_grid().sync();
  *out = kept;
}

void launch(int* out) { check<1><<<1, 1>>>(out); }
