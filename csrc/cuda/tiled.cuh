// The launches of a large batch: memory grows with N, and tiles that mining emptied are skipped.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/positive_finish.cuh"
#include "cuda/read_term.cuh"
#include "cuda/tile_gradient.cuh"
#include "cuda/tile_list.cuh"

namespace msk::gpu {

template <class P, typename Input, bool of_rows>
MSK_KERNEL(kThreads, 2)
prepare_kernel(const MSK_PARAMETER Problem p) {
  if (of_rows)
    prepare<P, Input>(p, p.rows, p.row_room);
  else
    prepare<P, Input>(p, p.columns, p.column_room);
  if (of_rows && blockIdx.x == 0 && threadIdx.x == 0)
    *p.row_room.poisoned = *p.column_room.poisoned = 0;
}

// One block a tile: terms from statistics that the caller gives.
template <class P, bool of_rows>
MSK_KERNEL(kThreads, 2)
read_term_kernel(const MSK_PARAMETER Problem p) {
  using Scalar = typename P::Scalar;
  const SideInput& input = of_rows ? p.rows : p.columns;
  const SideRoom& room = of_rows ? p.row_room : p.column_room;
  const Side<P> side(input, room, p.padded_depth);
  auto* const reduce_room = reinterpret_cast<Greatest<Scalar>*>(shared_memory());
  const std::int64_t tile = blockIdx.x, i = tile * kTile + line();
  Greatest<Scalar> most{Scalar(0)};
  if (half() == 0 && i < side.count) {
    const Scalar dloss =
        read_term_of<P>(input, side, of_rows ? p.row_term : p.column_term, p.options, i);
    most.value = std::fabs(dloss);
    if (std::isnan(dloss)) *room.poisoned = 1;
  }
  most = block_reduce(most, reduce_room, Greatest<Scalar>::greater);
  if (threadIdx.x == 0) static_cast<Scalar*>(room.largest_dloss)[tile] = most.value;
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
    if (p_.d_rows) gradient(p_);
    if (p_.d_columns) gradient(exchanged(p_));
  }

 private:
  using Scalar = typename P::Scalar;
  // Of kernels that only reduce over the block.
  static constexpr std::size_t kLittle = 1024;

  template <auto kernel>
  void launch(const char* name, std::int64_t blocks, std::size_t shared, const Problem& p) const {
    launch_blocks<kernel>(name, blocks, kThreads, shared, device_, stream_, p);
  }
  static std::int64_t tiles(const SideInput& side) { return padded(side.count) / kTile; }

  void prepare() const {
    // One block at least: it also lowers flags.
    const std::int64_t blocks = std::max(padded(p_.rows.count), std::int64_t(1));
    launch<prepare_kernel<P, Input, true>>("prepare_kernel", blocks, kLittle, p_);
    if (!p_.self)
      launch<prepare_kernel<P, Input, false>>("prepare_kernel", padded(p_.columns.count), kLittle,
                                              p_);
  }
  void read_terms() const {
    if (p_.terms & row_term)
      launch<read_term_kernel<P, true>>("read_term_kernel", tiles(p_.rows), kLittle, p_);
    if (p_.terms & column_term)
      launch<read_term_kernel<P, false>>("read_term_kernel", tiles(p_.columns), kLittle, p_);
  }
  void statistics() const {
    const std::int64_t rows = tiles(p_.rows), columns = tiles(p_.columns);
    constexpr std::size_t shared = NegativeScan<P>::kSharedBytes;
    const std::int64_t parts = rows * p_.tiled.parts;
    launch<positive_scan_kernel<P>>("positive_scan_kernel", parts, shared, p_);
    launch<open_sums_kernel<P>>("open_sums_kernel", rows, kLittle, p_);
    Problem part = p_;
    const std::int64_t runs = (columns + p_.tiled.run - 1) / p_.tiled.run;
    for (std::int64_t first = 0; first < rows && columns > 0; first += p_.tiled.chunk) {
      part.tiled.first = first;
      part.tiled.count = std::min(p_.tiled.chunk, rows - first);
      launch<negative_scan_kernel<P>>("negative_scan_kernel", part.tiled.count * runs, shared,
                                      part);
      launch<merge_kernel<P>>("merge_kernel", (rows * kTile + kThreads - 1) / kThreads, 0, part);
    }
    launch<positive_sums_kernel<P>>("positive_sums_kernel", parts, shared, p_);
    launch<positive_finish_kernel<P>>("positive_finish_kernel", rows, kLittle, p_);
  }
  void gradient(const Problem& p) const {
    const std::int64_t rows = tiles(p.rows), columns = tiles(p.columns);
    Problem part = p;
    for (std::int64_t first = 0; first < rows; first += p.tiled.panel) {
      part.tiled.first = first;
      part.tiled.count = std::min(p.tiled.panel, rows - first);
      launch<tile_list_kernel<P>>("tile_list_kernel", part.tiled.count, kLittle, part);
      // One segment at least: it also writes the gradient where there are no columns.
      for (std::int64_t slot = 0; slot == 0 || slot < columns; slot += kSegment) {
        part.tiled.slot = slot;
        const std::int64_t most = std::min(columns - slot, std::int64_t(kSegment));
        const std::int64_t runs = (most + kListRun - 1) / kListRun;
        launch<tile_weights_kernel<P>>("tile_weights_kernel", part.tiled.count * runs,
                                       TileWeights<P>::kSharedBytes, part);
        launch<tile_gradient_kernel<P>>("tile_gradient_kernel",
                                        part.tiled.count * (p.padded_depth / kTile),
                                        kGradientSharedBytes<P>, part);
      }
    }
  }

  const Problem p_;
  const int device_;
  void* const stream_;
};

template <class P, typename Input>
void launch_tiled(const Problem& p, int device, void* stream) {
  TiledLaunches<P, Input>(p, device, stream).run();
}

}  // namespace msk::gpu
