"""Triton backend: tiles of similarities on a GPU, O(N D) memory, no wait of the host.

Both sides are copied in label order; statistics take one half pass over the negatives and two looks
at the few tiles with positives; the gradient visits the tiles that mining left.
"""

import contextlib
import importlib
import importlib.util
from collections.abc import Hashable

import torch
from torch import Tensor

from ms_kernels.backends import gpu
from ms_kernels.backends.blocks import BlocksApart, hardest_by
from ms_kernels.backends.interface import (
    Counted,
    Crowd,
    Found,
    Known,
    Reduced,
    ReducedPlan,
    Side,
    Term,
)
from ms_kernels.backends.triton import driver, tiles
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import Triplet
from ms_kernels.settings import float32_products, options

DEVICE = "cuda"
NOTE = "fused Triton kernels for CUDA tensors"
MOST_SAMPLES = None
# By reckoning, not measured on a GPU: kernels take longer the more candidates a class could have.
CROWD = Crowd(2048, of_class=False)
interpreted = tiles.interpreted

# The compiler of 3.2 crashes on the triplet loss.
LEAST_TRITON = (3, 3)
# Earlier ones have no float64 products.
LEAST_FOR_FLOAT64 = (3, 5)

# Kernels import Triton, so they are imported by the functions that launch them.


def missing() -> str | None:
    """None when Triton and a GPU are here, or its interpreter is asked for; else why not."""
    interpreted = tiles.interpreted()
    if not interpreted:
        if torch.version.hip is not None:
            return (
                f"this torch, {torch.__version__}, is built for ROCm, where the kernels have "
                "never run; use backend='panels'"
            )
        reason = gpu.unusable()
        if reason is not None:
            return f"{reason} (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"
    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed; pip install 'triton>={_dotted(LEAST_TRITON)}'"
    version: str = importlib.import_module("triton").__version__
    if _triton_version(version) < LEAST_TRITON:
        return (
            f"Triton {_dotted(LEAST_TRITON)} or newer is needed, this is {version}; update torch, "
            "which brings it"
        )
    if interpreted:
        return None
    return (
        tiles.unsupported(torch.device("cuda", torch.cuda.current_device()))
        or driver.unlaunchable()
    )


def note() -> str:
    """NOTE, and what would make a step faster."""
    reason = None if tiles.interpreted() else driver.missing()
    if reason is None:
        return NOTE
    return f"{NOTE}, by its launcher, which takes the host some 0.2 ms a step longer: {reason}"


def refuses(spec: PairSpec, dtype: torch.dtype | None) -> str | None:
    """None when the kernels take these rules, and embeddings of this dtype with the Triton that is
    here; else why not."""
    return spec.unfit_options() or _refuses_dtype(dtype)


def _refuses_dtype(dtype: torch.dtype | None) -> str | None:
    if dtype != torch.float64:
        return None
    version: str = importlib.import_module("triton").__version__
    if _triton_version(version) >= LEAST_FOR_FLOAT64:
        return None
    return (
        f"float64 needs Triton {_dotted(LEAST_FOR_FLOAT64)} or newer, this is {version}; update "
        "torch, which brings it, or use backend='panels'"
    )


def _triton_version(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".")[:2])


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def row_statistics(anchors: Side, candidates: Side | None, spec: PairSpec) -> RowStatistics:
    """Statistics of each anchor; candidates None means the anchors themselves."""
    from ms_kernels.backends.triton.launch_step import exact_statistics

    with _on_device_of(anchors.embeddings):
        return exact_statistics(anchors, candidates, spec)


def embedding_gradient(
    rows: Side,
    columns: Side | None,
    spec: PairSpec,
    row_term: Term | None,
    column_term: Term | None,
) -> Tensor:
    """Gradient (N, D) with respect to the rows' embeddings, through their normalisation.

    The triplet loss compares the anchors' pairs anew: there the columns must be all candidates of a
    row_term's anchors, and the rows all candidates of a column_term's.
    """
    from ms_kernels.backends.triton.launch_longer import Sides
    from ms_kernels.backends.triton.launch_terms import gradient_of_terms
    from ms_kernels.backends.triton.problem import Problem

    with _on_device_of(rows.embeddings):
        sides = Sides(rows, columns, spec, exchanged=row_term is None)
        problem = other = Problem(sides.rows, sides.columns, spec, wide=True)
        if column_term is not None and columns is not None:
            ranges = problem.columns.ranges_among(columns.labels, problem.rows, rows.labels)
            other = problem.other_way(*ranges)
        budget = options.workspace_bytes
        found = gradient_of_terms(problem, other, row_term, column_term, budget)
        gradient = sides.of_rows(found)
        assert gradient is not None
        return gradient


def learns(spec: PairSpec) -> bool:
    """Whether options may."""
    return True


def learned_statistics(
    anchors: Side, candidates: Side | None, spec: PairSpec, option_values: Tensor
) -> RowStatistics:
    """As row_statistics, where options of the weighting rule learn."""
    from ms_kernels.backends.triton import launch_learned

    with _on_device_of(anchors.embeddings):
        return launch_learned.learned_statistics(anchors, candidates, spec, option_values)


def learned_gradient(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    option_values: Tensor,
    term: Term,
    need_dx: bool,
    need_dr: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Gradients of both sides and sums of weights, for options that learn."""
    from ms_kernels.backends.triton import launch_learned

    how = spec, option_values, term, need_dx, need_dr
    with _on_device_of(anchors.embeddings):
        return launch_learned.learned_gradient(anchors, candidates, *how)


weight_sums = BlocksApart(row_statistics, learned_gradient).weight_sums


def takes_blocks(spec: PairSpec) -> bool:
    """Lists of hardest negatives stay in the kernels, triplets are pairs beside pairs, and sums of
    positives take that of the negatives from the scan."""
    rule = spec.weighting
    one = spec.mining.hardest_negatives == 1
    return one and not rule.pos_follows_neg and not isinstance(rule, Triplet)


hardest_of_block = hardest_by(row_statistics)


def block_statistics(
    anchors: Side, candidates: Side | None, spec: PairSpec, known: Known | None
) -> RowStatistics:
    """Statistics of each anchor, by what is known of more candidates than these."""
    from ms_kernels.backends.triton import launch_blocks

    if known is None:
        return row_statistics(anchors, candidates, spec)
    with _on_device_of(anchors.embeddings):
        return launch_blocks.block_statistics(anchors, candidates, spec, known)


def loss_and_gradient(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    need_dx: bool,
    need_dr: bool,
    dloss: Tensor | None = None,
) -> Found:
    """Row losses, above 0 for the rows that keep a pair, and the gradients of the losses' sum."""
    from ms_kernels.backends.triton.launch_step import step

    with _on_device_of(anchors.embeddings):
        losses, valid, dx, dr = step(anchors, candidates, spec, need_dx, need_dr, dloss)
        assert losses is not None and valid is not None
        return losses, valid, dx, dr


def counted_loss(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    need_dx: bool,
    need_dr: bool,
    dloss: Tensor | None,
    option_values: Tensor | None,
    weigh: bool,
) -> Counted | None:
    """Statistics beside losses and gradients, from one scan; None of options that learn."""
    from ms_kernels.backends.triton.launch_step import counted_step

    if option_values is not None:  # where weights are added up their gradient takes another way
        return None
    with _on_device_of(anchors.embeddings):
        return counted_step(anchors, candidates, spec, need_dx, need_dr, dloss)


def reduced_loss_and_gradient(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    reduction: str,
    dtype: torch.dtype,
    need_dx: bool,
    need_dr: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """The loss in `dtype` and its gradients; None of a rule that goes by rounds."""
    plan = plan_reduced(anchors, candidates, spec, reduction, dtype, need_dx, need_dr)
    return None if plan is None else plan(anchors, candidates)


def plan_reduced(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    reduction: str,
    dtype: torch.dtype,
    need_dx: bool,
    need_dr: bool,
) -> ReducedPlan | None:
    """What reduced_loss_and_gradient does, for all tensors of these kinds."""
    from ms_kernels.backends.triton.launch_step import key_of_reduced, reduced_step

    if isinstance(spec.weighting, Triplet):
        return None
    how = spec, reduction, dtype, need_dx, need_dr
    key = key_of_reduced(anchors, candidates, *how)

    def run(anchors: Side, candidates: Side | None) -> Reduced:
        with _on_device_of(anchors.embeddings):
            loss, dx, dr = reduced_step(anchors, candidates, *how, key)
            assert loss is not None
            return loss, dx, dr

    return run


def plans_depend_on() -> Hashable:
    """Beside the arguments of plan_reduced."""
    return options.workspace_bytes, options.stash_bytes, float32_products()


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
