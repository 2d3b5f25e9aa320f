// One function for each path and pair of input and operand types, each in a file of its name.
#pragma once

#include "cuda/problem.h"

namespace msk::gpu {

void batch_float16(const Problem& problem, int device, void* stream);
void batch_bfloat16(const Problem& problem, int device, void* stream);
void batch_float32(const Problem& problem, int device, void* stream);  // as exact as float32
void batch_tf32(const Problem& problem, int device, void* stream);
void batch_rounded(const Problem& problem, int device, void* stream);  // float32 to bfloat16
void batch_float64(const Problem& problem, int device, void* stream);

void tiled_float16(const Problem& problem, int device, void* stream);
void tiled_bfloat16(const Problem& problem, int device, void* stream);
void tiled_float32(const Problem& problem, int device, void* stream);
void tiled_tf32(const Problem& problem, int device, void* stream);
void tiled_rounded(const Problem& problem, int device, void* stream);
void tiled_float64(const Problem& problem, int device, void* stream);

}  // namespace msk::gpu
