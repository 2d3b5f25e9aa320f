// The whole loss of a batch in one cooperative launch.
#pragma once

#include "cuda/embedding_gradient.cuh"
#include "cuda/family_statistics.cuh"
#include "cuda/grid_barrier.cuh"
#include "cuda/launch.cuh"
#include "cuda/pair_weights.cuh"
#include "cuda/prepare.cuh"
#include "cuda/ranked_statistics.cuh"
#include "cuda/read_term.cuh"
#include "cuda/row_statistics.cuh"
#include "cuda/similarity.cuh"

namespace msk::gpu {

template <class P>
constexpr std::size_t kSharedBytes =
    TileProduct<P, Right::rows>::kSharedBytes > TileProduct<P, Right::columns>::kSharedBytes
        ? TileProduct<P, Right::rows>::kSharedBytes
        : TileProduct<P, Right::columns>::kSharedBytes;

// Rows -> similarities of a panel of rows -> statistics and loss -> weights -> gradient, with a
// barrier of the grid between phases. Every number has one owner and one order of summation, so
// the bits depend neither on the grid nor on the height of a panel.
template <class P, typename Input>
MSK_KERNEL(kThreads, 2)
batch_kernel(const MSK_PARAMETER Problem p) {
  if (p.round && std::int64_t(p.round) * p.rank_slots >= *p.most_ranks) return;
  if (!p.prepared) {
    prepare<P, Input>(p, p.rows, p.row_room);
    if (!p.self) prepare<P, Input>(p, p.columns, p.column_room);
    read_term<P>(p, p.rows, p.row_room, p.row_term);
    read_term<P>(p, p.columns, p.column_room, p.column_term);
    grid_barrier();
  }
  // A batch of one panel goes through once: its similarities are still there for the gradient.
  const bool one_panel = p.rows.count <= p.panel;
  for (int round = p.job == Job::gradient ? 1 : 0; round < 2; ++round) {
    const bool statistics = round == 0, gradient = p.d_rows && (round == 1 || one_panel);
    if (round == 1 && (!p.d_rows || (one_panel && p.job != Job::gradient))) break;
    for (std::int64_t first = 0; first < p.rows.count; first += p.panel) {
      similarities<P>(p, first);
      grid_barrier();
      if (statistics) {
        if (p.ranked)
          ranked_statistics<P>(p, first);
        else if (p.family)
          family_statistics<P>(p, first);
        else
          row_statistics<P>(p, first);
        if (p.d_rows || first + p.panel < p.rows.count) grid_barrier();
      }
      if (gradient) {
        pair_weights<P>(p, first, statistics);
        grid_barrier();
        // The next panel's similarities touch nothing that this reads; a barrier follows them.
        embedding_gradient<P>(p, first);
      }
    }
  }
}

template <class P, typename Input>
void launch_batch(const Problem& p, int device, void* stream) {
  static_assert(kSharedBytes<P> <= kMostShared);
  launch_cooperative<batch_kernel<P, Input>>("batch_kernel", p.blocks, kThreads, kSharedBytes<P>,
                                             device, stream, p);
}

}  // namespace msk::gpu
