// The launches of a large batch: memory grows with N, and tiles that mining emptied are skipped.
#pragma once

#include "cuda/core/launch.cuh"
#include "cuda/pairs/read_term.cuh"
#include "cuda/tiled/positive_finish.cuh"
#include "cuda/tiled/tile_gradient.cuh"
#include "cuda/tiled/tile_list.cuh"

namespace msk::gpu {

template <class P, typename Input, bool of_rows>
MSK_KERNEL(kThreads<P>, 2)
prepare_kernel(const MSK_PARAMETER Problem p) {
  if (of_rows)
    prepare<P, Input>(p, p.rows, p.row_buffers);
  else
    prepare<P, Input>(p, p.columns, p.column_buffers);
  if (of_rows && blockIdx.x == 0 && threadIdx.x == 0)
    *p.row_buffers.poisoned = *p.column_buffers.poisoned = 0;
}

// One thread a row: terms from statistics that the caller gives.
template <class P, bool of_rows>
MSK_KERNEL(kThreads<P>, 2)
read_term_kernel(const MSK_PARAMETER Problem p) {
  const SideInput& input = of_rows ? p.rows : p.columns;
  const SideBuffers& buffers = of_rows ? p.row_buffers : p.column_buffers;
  const Side<P> side(input, buffers, p.padded_depth);
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreads<P> + threadIdx.x;
  if (i >= side.count) return;
  const TermInput& term = of_rows ? p.row_term : p.column_term;
  if (std::isnan(read_term_of<P>(p, input, side, term, i))) raise_flag(buffers.poisoned);
}

template <class P, typename Input>
class TiledLaunches {
 public:
  TiledLaunches(const Problem& problem, int device, void* stream)
      : p_(problem), device_(device), stream_(stream) {}

  void run() {
    prepare();
    if (p_.job == Job::gradient)
      read_terms();
    else
      statistics();
    const Problem given = as_given(p_), other = exchanged(p_);
    if (weighs(given)) gradient(given);
    if (p_.d_columns) gradient(other);
    if (p_.weight_sums)
      launch<weight_sums_kernel<P>, kLittle>("weight_sums_kernel", 1,
                                             given.row_sums ? given : other);
  }

 private:
  using Scalar = typename P::Scalar;
  // Of kernels that only reduce over the block.
  static constexpr std::size_t kLittle = 1024;

  template <auto kernel, std::size_t shared>
  void launch(const char* name, std::int64_t blocks, const Problem& p) const {
    static_assert(shared <= kMostShared);
    launch_blocks<kernel>(name, blocks, kThreads<P>, shared, device_, stream_, p);
  }
  static std::int64_t tiles(const SideInput& side) { return divided(side.count, kTile<P>); }

  void prepare() const {
    // One block at least: it also lowers flags.
    const std::int64_t blocks = std::max(padded<P>(p_.rows.count), std::int64_t(1));
    launch<prepare_kernel<P, Input, true>, kLittle>("prepare_kernel", blocks, p_);
    if (!p_.self)
      launch<prepare_kernel<P, Input, false>, kLittle>("prepare_kernel",
                                                       padded<P>(p_.columns.count), p_);
  }
  void read_terms() const {
    if (p_.terms & row_term)
      launch<read_term_kernel<P, true>, 0>("read_term_kernel", divided(p_.rows.count, kThreads<P>),
                                           p_);
    if (p_.terms & column_term)
      launch<read_term_kernel<P, false>, 0>("read_term_kernel",
                                            divided(p_.columns.count, kThreads<P>), p_);
  }
  void statistics() const {
    const std::int64_t rows = tiles(p_.rows), columns = tiles(p_.columns);
    constexpr std::size_t shared = NegativeScan<P>::kSharedBytes;
    const std::int64_t parts = rows * p_.tiled.parts;
    launch<positive_scan_kernel<P>, shared>("positive_scan_kernel", parts, p_);
    launch<open_sums_kernel<P>, kLittle>("open_sums_kernel", rows, p_);
    Problem part = p_;
    const std::int64_t column_blocks = divided(columns, p_.tiled.column_tiles_per_block);
    for (std::int64_t first = 0; first < rows && columns > 0;
         first += p_.tiled.row_tiles_per_launch) {
      part.tiled.first = first;
      part.tiled.count = std::min(p_.tiled.row_tiles_per_launch, rows - first);
      launch<negative_scan_kernel<P>, shared>("negative_scan_kernel",
                                              part.tiled.count * column_blocks, part);
      // In self mode a row of tiles also serves the columns under it.
      const std::int64_t known = p_.self ? rows - first : part.tiled.count;
      launch<merge_kernel<P>, 0>("merge_kernel", divided(known * kTile<P>, kThreads<P>), part);
    }
    launch<positive_sums_kernel<P>, shared>("positive_sums_kernel", parts, p_);
    launch<positive_finish_kernel<P>, kLittle>("positive_finish_kernel", rows, p_);
  }
  void gradient(const Problem& p) const {
    const std::int64_t rows = tiles(p.rows), columns = tiles(p.columns);
    Problem part = p;
    for (std::int64_t first = 0; first < rows; first += p.tiled.panel) {
      part.tiled.first = first;
      part.tiled.count = std::min(p.tiled.panel, rows - first);
      launch<tile_list_kernel<P>, kLittle>("tile_list_kernel", part.tiled.count, part);
      // One segment at least: it also writes the gradient where there are no columns.
      for (std::int64_t first_listed = 0; first_listed == 0 || first_listed < columns;
           first_listed += kSegment) {
        part.tiled.first_listed = first_listed;
        const std::int64_t most = std::min(columns - first_listed, std::int64_t(kSegment));
        const std::int64_t list_blocks = divided(most, kListedPerBlock);
        const std::int64_t blocks = part.tiled.count * list_blocks;
        constexpr std::size_t shared = TileWeights<P>::kSharedBytes;
        if (p.option_values)
          launch<learned_weights_kernel<P>, shared>("learned_weights_kernel", blocks, part);
        else
          launch<tile_weights_kernel<P>, shared>("tile_weights_kernel", blocks, part);
        if (p.row_sums)
          launch<tile_sums_kernel<P>, 0>("tile_sums_kernel", divided(part.tiled.count, kThreads<P>),
                                         part);
        if (!p.d_rows) continue;
        launch<tile_gradient_kernel<P>, kGradientSharedBytes<P>>(
            "tile_gradient_kernel", part.tiled.count * (p.padded_depth / kTile<P>), part);
      }
    }
  }

  const Problem p_;
  const int device_;
  void* const stream_;
};

namespace tiled {

template <class P, typename Input>
void launch(const Problem& p, int device, void* stream) {
  TiledLaunches<P, Input>(p, device, stream).run();
}

}  // namespace tiled

}  // namespace msk::gpu
