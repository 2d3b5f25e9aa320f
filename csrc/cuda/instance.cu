// One path for one pair of input and operand types. The build compiles this file once for each,
// with the names MSK_PATH (batch, small or tiled) and MSK_OPERAND (a struct of `operands`): see
// instances.h.
#include "cuda/host/instances.h"

#define MSK_STRING(text) #text
// clang-format off: spaces would be part of the name
#define MSK_HEADER_OF(path) MSK_STRING(cuda/path/path.cuh)
// clang-format on
#include MSK_HEADER_OF(MSK_PATH)

namespace msk::gpu {

namespace operands {

template <typename Operand>
using Shape = ShapeOf<Path::MSK_PATH, Operand>;

struct float16 {
  using Input = Half;
  using Product = HalfProduct<Half, Shape<Half>>;
};
struct bfloat16 {
  using Input = BFloat16;
  using Product = HalfProduct<BFloat16, Shape<BFloat16>>;
};
struct float32 {
  using Input = float;
  using Product = Tf32Product<true, Shape<float>>;
};
struct tf32 {
  using Input = float;
  using Product = Tf32Product<false, Shape<float>>;
};
struct rounded {
  using Input = float;
  using Product = HalfProduct<BFloat16, Shape<BFloat16>>;
};
struct float64 {
  using Input = double;
  using Product = DoubleProduct<Shape<double>>;
};

}  // namespace operands

void MSK_PATH::MSK_OPERAND(const Problem& problem, int device, void* stream) {
  using Types = operands::MSK_OPERAND;
  launch<Types::Product, Types::Input>(problem, device, stream);
}

}  // namespace msk::gpu
