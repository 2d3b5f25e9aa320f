// A pass of the one launch over the pairs, panel by panel.
#pragma once

#include "cuda/pairs/side.cuh"

namespace msk::gpu {

// Both sides, and the panel of similarities and weights that the phases of the launch share.
template <class P>
struct Pass : Pairs<P> {
  using Scalar = typename P::Scalar;
  std::int64_t panel, width;  // rows and columns of the similarities held, both padded
  int splits;
  Scalar* similarities;
  typename P::Operand* weights;
  Scalar *inverse_weight_scales, *dot;

  MSK_DEVICE explicit Pass(const Problem& p)
      : Pairs<P>(p),
        panel(p.panel),
        width(padded<P>(this->columns.count)),
        splits(p.splits),
        similarities(static_cast<Scalar*>(p.similarities)),
        weights(static_cast<typename P::Operand*>(p.weights)),
        inverse_weight_scales(static_cast<Scalar*>(p.inverse_weight_scales)),
        dot(static_cast<Scalar*>(p.dot)) {}

  // Rows from `first` on that the panel holds, padding included.
  MSK_DEVICE std::int64_t height(std::int64_t first) const {
    const std::int64_t left = padded<P>(this->rows.count) - first;
    return left < panel ? left : panel;
  }
  // The parts of the depth are summed in order.
  MSK_DEVICE Scalar similarity(std::int64_t first, std::int64_t i, std::int64_t j) const {
    const Scalar* part = similarities + (i - first) * width + j;
    Scalar sum = *part;
    for (int s = 1; s < splits; ++s) sum += part[s * panel * width];
    const Scalar product = this->scaled(sum, this->rows.scale[i], this->columns.scale[j],
                                        this->rows.residue[i] + this->columns.residue[j]);
    return distance_similarity(this->distance, product);
  }
};

}  // namespace msk::gpu
