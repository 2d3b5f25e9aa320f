"""What passes between the public functions and a backend.

A backend is a module with these functions, where `candidates` or `columns` None means self mode
(the rows are their own columns, a pair i = i never counts) and the compute dtype is float64 for
float64 embeddings, else float32:

    DEVICE: str | None
        The only type of device that it serves, None for any.
    NOTE: str
        What it is, for `backends()`; a function note() too where there is more to say.
    MOST_SAMPLES: int | None
        Of the larger side: beyond it others that are made for the device are faster. None: any.
    fastest_at_any_size(spec, dtype) -> bool
        Only beside a number: whether it is none for these rules and this dtype, None if unknown.
    leaves_to_others(spec) -> bool
        Only beside a number: whether it is none for these rules, for which others that are made
        for the device are faster at every size.
    CROWD: Crowd | None
        Beyond it a triplet loss goes faster by panels, which sort the positives of an anchor.
    missing() -> str | None
        None when the backend can be used; else why not, and the way out.
    refuses(spec, dtype) -> str | None
        None when it takes these rules, and embeddings of this dtype unless that is None; else why
        not.
    row_statistics(anchors, candidates, spec) -> RowStatistics
    embedding_gradient(rows, columns, spec, row_term, column_term) -> Tensor
        (N, D) in the compute dtype: row i gets the sum over j of
        (g(S_ij; row i) d_i + g(S_ij; column j) d_j) column_j, through its normalisation. Of the
        triplet loss, which compares pairs with pairs, the columns of a row term are all candidates
        of the rows, the rows of a column term all candidates of the columns.
    loss_and_gradient(anchors, candidates, spec, need_dx, need_dr, dloss=None) -> tuple
        Row losses (N,), int64 (N,) above 0 where a row keeps a pair, and the gradients of the sum
        of row losses, or of their sum times dloss (N,).

and, where candidates need not be of the dtype of the anchors,

    READS_ANY_DTYPE: bool
        Whether each side is read as it is, no wider than the compute dtype; else the narrower is
        converted.

and, where it reduces by itself,

    reduced_loss_and_gradient(anchors, candidates, spec, reduction, dtype, need_dx, need_dr)
        -> tuple | None
        The loss, of any reduction but "none", in `dtype`, and its gradients; None of what it leaves
        to loss_and_gradient and torch.

and, where that can be planned once for all tensors of the same kinds (see api/known.py),

    plan_reduced(anchors, candidates, spec, reduction, dtype, need_dx, need_dr)
        -> ReducedPlan | None
    plans_depend_on() -> Hashable
        What a plan depends on besides.

and, where one sweep serves candidates that are anchors too,

    serves_two_sides(spec) -> bool
        Whether the two functions above take such a spec; others are given one side at a time.

and, where torch's own bits would depend on its threads,

    loss_of_statistics(stats, spec) -> Tensor
        Row losses (N,) of finished statistics, to the bits of loss_and_gradient.

and, where one sweep gives statistics beside losses and gradients,

    counted_loss(anchors, candidates, spec, need_dx, need_dr, dloss, option_values, weigh)
        -> Counted | None
        As loss_and_gradient. option_values: None, or as below. weigh: whether sums of weights are
        wanted. None of what it leaves to the functions that follow and to those before.

and, where options of the weighting rule may learn,

    learns(spec) -> bool
        Whether they may of these rules. What follows takes them as a tensor, option_values (k,) in
        the compute dtype, in the order of the rule; the spec's own mean nothing then.
    learned_statistics(anchors, candidates, spec, option_values) -> RowStatistics
    learned_gradient(anchors, candidates, spec, option_values, term, need_dx, need_dr)
        -> tuple
        The gradients of both sides, in self mode with the anchors as candidates in dx, where they
        are wanted, and `WeightSums` (4,), in self mode too of each anchor's own pairs; of triplets,
        which need none, anything.

and, where candidates may come a block at a time, whose statistics are joined,

    takes_blocks(spec) -> bool
        Whether it does so of these rules.
    hardest_of_block(anchors, candidates, spec) -> tuple[Tensor, Tensor]
        Only where it takes rules whose mining asks for hardest pairs.
        Of what these candidates alone offer: least similarity to a positive (N,), greatest to
        negatives (N, mining.hardest_negatives), infinite where there are fewer.
    block_statistics(anchors, candidates, spec, known) -> RowStatistics
        Numbers and sums of pairs with these candidates that mining keeps by what is known of all.
        known.hardest_positive and hardest_negative are taken for the anchor's own; with
        known.neg_sum only what the answer says of the positives means anything.
    weight_sums(anchors, candidates, spec, term) -> Tensor
        `WeightSums` (4,) of the anchors' pairs with these candidates.

and, where the kernels have an interpreter, which serves tensors of any device,

    interpreted() -> bool
        Whether it is what runs them now.

A row with a similarity that is not finite has a NaN loss; in self mode every gradient is then NaN,
with candidates that of the row and those of all candidates.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ms_kernels.reference import RowStatistics

# e to this power, 2^23 times, is a float32; so is its inverse.
MOST_EXPONENT = 70


class Side(NamedTuple):
    """One side of the pairs: embeddings (N, D), int64 labels (N,), int64 ids (N,) or None."""

    embeddings: Tensor
    labels: Tensor
    ids: Tensor | None


# A reduced loss and its gradients, and what computes them.
Reduced = tuple[Tensor, Tensor | None, Tensor | None]
ReducedPlan = Callable[[Side, Side | None], Reduced]


class Crowd(NamedTuple):
    """So many candidates of an anchor, of its class or of any: of those it is on average, and the
    labels are looked at, for which a GPU would be waited for."""

    most: int
    of_class: bool


class Known(NamedTuple):
    """What is known of all candidates of the anchors (N,), where some are at hand: hardest pairs,
    as mining takes them, and of a rule whose positives need it the sum of the negatives."""

    hardest_positive: Tensor
    hardest_negative: Tensor
    neg_sum: Tensor | None = None


class Term(NamedTuple):
    """What one side adds to a pair's weight: its statistics and the gradient of its row losses."""

    stats: RowStatistics
    dloss: Tensor


class Counted(NamedTuple):
    """Of one sweep: row losses (N,), statistics, gradients where they were wanted, and if options
    learn `WeightSums` (4,)."""

    losses: Tensor
    stats: RowStatistics
    dx: Tensor | None
    dr: Tensor | None
    weight_sums: Tensor | None


# Row losses (N,), kept pairs of each row (N,), gradients of both sides where they were wanted.
Found = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def compute_dtype(embeddings: Tensor) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if embeddings.dtype == torch.float64 else torch.float32


def reads(own: torch.dtype, other: torch.dtype) -> bool:
    """Whether the compute dtype of anchors holds all numbers of candidates of another dtype."""
    return own == torch.float64 or other != torch.float64
