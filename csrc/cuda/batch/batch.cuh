// The whole loss of a batch in one cooperative launch.
#pragma once

#include "cuda/batch/embedding_gradient.cuh"
#include "cuda/batch/family_statistics.cuh"
#include "cuda/batch/pair_weights.cuh"
#include "cuda/batch/ranked_statistics.cuh"
#include "cuda/batch/row_statistics.cuh"
#include "cuda/batch/row_sums.cuh"
#include "cuda/batch/similarity.cuh"
#include "cuda/core/grid_barrier.cuh"
#include "cuda/core/launch.cuh"
#include "cuda/pairs/prepare.cuh"
#include "cuda/pairs/read_term.cuh"

namespace msk::gpu {

template <class P>
constexpr std::size_t kSharedBytes =
    TileProduct<P, Right::rows>::kSharedBytes > TileProduct<P, Right::columns>::kSharedBytes
        ? TileProduct<P, Right::rows>::kSharedBytes
        : TileProduct<P, Right::columns>::kSharedBytes;

// Of the rows of one panel, whose pairs are in the workspace: weights -> gradient. `finished`: so
// are the similarities; see pair_weights.
template <class P>
MSK_DEVICE void panel_gradient(const Problem& p, std::int64_t first, bool finished) {
  if (p.row_sums) row_sums<P>(p, first);
  if (p.d_rows) pair_weights<P>(p, first, finished);
  grid_barrier();
  if (p.d_rows) embedding_gradient<P>(p, first);
}

template <class P>
MSK_DEVICE void statistics_pass(const Problem& p) {
  for (std::int64_t first = 0; first < p.rows.count; first += p.panel) {
    grid_barrier();
    similarities<P>(p, first);
    grid_barrier();
    if (p.ranked)
      ranked_statistics<P>(p, first);
    else if (p.family)
      family_statistics<P>(p, first);
    else
      row_statistics<P>(p, first);
  }
  // A batch of one panel: its similarities are still there for the gradient.
  if (!p.d_rows || !p.one_panel) return;
  grid_barrier();
  panel_gradient<P>(p, 0, true);
}

template <class P>
MSK_DEVICE void gradient_pass(const Problem& p) {
  grid_barrier();
  for (std::int64_t first = 0; first < p.rows.count; first += p.panel) {
    // They write nothing that the gradient of the panel before reads.
    similarities<P>(p, first);
    grid_barrier();
    panel_gradient<P>(p, first, false);
  }
}

// Rows -> similarities of a panel of rows -> statistics and loss -> weights -> gradient, with a
// barrier of the grid between phases. Every number has one owner and one order of summation, so
// the bits depend neither on the grid nor on the height of a panel. A ranked loss goes through its
// pairs until no class has a candidate that no round had.
template <class P, typename Input>
MSK_KERNEL(kThreads<P>, 2)
batch_kernel(const MSK_PARAMETER Passes passes) {
  const Problem& p = passes.given;
  prepare<P, Input>(p, p.rows, p.row_buffers);
  if (!p.self) prepare<P, Input>(p, p.columns, p.column_buffers);
  read_term<P>(p, p.rows, p.row_buffers, p.row_term);
  read_term<P>(p, p.columns, p.column_buffers, p.column_term);
  if (p.ranked && blockIdx.x == 0 && threadIdx.x == 0) *p.passed = 0;
  do {
    if (p.job != Job::gradient) statistics_pass<P>(p);
    if (weighs(p) && (p.job == Job::gradient || !p.one_panel)) gradient_pass<P>(p);
    if (p.d_columns) gradient_pass<P>(passes.exchanged);
  } while (p.ranked && next_round(p));
  if (p.weight_sums) add_row_sums<P>(p.row_sums ? p : passes.exchanged);
}

namespace batch {

template <class P, typename Input>
void launch(const Problem& p, int device, void* stream) {
  static_assert(kSharedBytes<P> <= kMostShared);
  launch_cooperative<batch_kernel<P, Input>>("batch_kernel", p.blocks, kThreads<P>, kSharedBytes<P>,
                                             device, stream, Passes{as_given(p), exchanged(p)});
}

}  // namespace batch

}  // namespace msk::gpu
