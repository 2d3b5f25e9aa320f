// One function for each pair of input and operand types, each in a file of its own.
#pragma once

#include "cuda/problem.h"

namespace msk::gpu {

void launch_float16(const Problem& problem, int device, void* stream);
void launch_bfloat16(const Problem& problem, int device, void* stream);
void launch_float32(const Problem& problem, int device, void* stream);  // as exact as float32
void launch_tf32(const Problem& problem, int device, void* stream);
void launch_rounded(const Problem& problem, int device, void* stream);  // float32 to bfloat16
void launch_float64(const Problem& problem, int device, void* stream);

}  // namespace msk::gpu
