"""CUDA C++ backend: statistics, loss and gradient of a batch in one cooperative launch, of a small
one with all its pairs at hand, of a large one by tiles in label order."""

from collections.abc import Hashable

import torch
from torch import Tensor

from ms_kernels.backends import cuda_call, gpu
from ms_kernels.backends.blocks import BlocksApart
from ms_kernels.backends.cuda_call import Call
from ms_kernels.backends.cuda_learned import LearnedOptions
from ms_kernels.backends.fit import REBUILD, unfit
from ms_kernels.backends.interface import Counted, Crowd, Found, Reduced, ReducedPlan, Side, Term
from ms_kernels.backends.native import NativeBackend
from ms_kernels.backends.products import as_products
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import Triplet
from ms_kernels.settings import ONE_LAUNCH, float32_products, options

DEVICE = cuda_call.DEVICE
NOTE = "CUDA C++ kernels, one launch for small batches"
MOST_SAMPLES = ONE_LAUNCH
# By reckoning, not measured on a GPU: kernels take longer the more candidates a class could have.
CROWD = Crowd(4096, of_class=False)

# With so many samples on the larger side, or fewer, a row of similarities fits the registers of a
# warp (csrc/cuda/core/geometry.h): loss and gradient have kernels of their own. Half as many in
# float64.
SMALL = 1024


def fastest_at_any_size(spec: PairSpec | None, dtype: torch.dtype | None) -> bool:
    """Measured on an H200, kernels alone: the MS loss of float32 4,096 x 512 in 1.15 ms against 2.2
    of Triton's, 16,384 x 512 in 15.5 against 31.5; called, 16,384 x 128 in 6.8 against 10.1, but
    4,096 x 128 in 1.2 against 0.8, for the host's time."""
    known = spec is not None and spec.is_multi_similarity
    return known and dtype == torch.float32 and float32_products() == "highest"


def leaves_to_others(spec: PairSpec | None) -> bool:
    """By counting: some fifty launches of torch make longer rows, those of Triton one a side."""
    return spec is not None and spec.distance is not None


def missing() -> str | None:
    """None when the compiled module and a GPU that it serves are here; else why not."""
    if torch.version.hip is not None:
        return (
            f"this torch, {torch.__version__}, is built for ROCm, the kernels are for NVIDIA GPUs; "
            "use backend='panels'"
        )
    reason = gpu.unusable()
    if reason is not None:
        return reason
    try:
        module = cuda_call.module()
    except ImportError as error:
        return (
            f"the compiled module ms_kernels._cuda is not here ({error}); reinstall with nvcc on "
            f"PATH: {REBUILD}"
        )
    if not hasattr(module, "versions"):
        return (
            "the compiled module ms_kernels._cuda is of an earlier ms_kernels; build it anew: "
            f"{REBUILD}"
        )
    return unfit(torch.cuda.get_device_capability(), module.architectures, *module.versions())


def refuses(spec: PairSpec, dtype: torch.dtype | None) -> str | None:
    """None when the kernels take these rules, else why not."""
    return spec.unfit_options()


def _largest(rows: Side, columns: Side | None) -> int:
    return max(len(side.labels) for side in (rows, columns) if side is not None)


def _is_small(rows: Side, columns: Side | None, spec: PairSpec) -> bool:
    most = SMALL // 2 if rows.embeddings.dtype == torch.float64 else SMALL
    largest = _largest(rows, columns)
    return largest <= min(most, ONE_LAUNCH) and not isinstance(spec.weighting, Triplet)


def _call(
    job: str,
    rows: Side,
    columns: Side | None,
    spec: PairSpec,
    option_values: Tensor | None = None,
) -> Call:
    # The same when rows and columns change places: only within one path has a pair the same
    # bits in statistics and gradients.
    largest = _largest(rows, columns)
    numbers = option_values is None
    small = job == "loss_and_gradient" and numbers and _is_small(rows, columns, spec)
    # Tiles know the MS loss alone; any rules go through the one launch, panel by panel.
    tiled = spec.is_multi_similarity and spec.distance is None
    return Call(job, rows, columns, spec, largest > ONE_LAUNCH and tiled, small, option_values)


_backend = NativeBackend(_call)
_learned = LearnedOptions(_call)
learned_statistics = _learned.statistics
learned_gradient = _learned.gradient


def learns(spec: PairSpec) -> bool:
    """Whether options may: of every rule, whose greatest exponents the kernels find first."""
    return True


def row_statistics(anchors: Side, candidates: Side | None, spec: PairSpec) -> RowStatistics:
    """Statistics of each anchor; candidates None means the anchors themselves."""
    sides = as_products(anchors, candidates, spec)
    return _backend.row_statistics(sides.rows, sides.columns, spec)


def embedding_gradient(
    rows: Side,
    columns: Side | None,
    spec: PairSpec,
    row_term: Term | None,
    column_term: Term | None,
) -> Tensor:
    """Gradient (N, D) with respect to the rows' embeddings, through their normalisation."""
    sides = as_products(rows, columns, spec, exchanged=row_term is None)
    found = _backend.embedding_gradient(sides.rows, sides.columns, spec, row_term, column_term)
    gradient = sides.of_rows(found)
    assert gradient is not None
    return gradient


_blocks = BlocksApart(row_statistics, learned_gradient)
takes_blocks = _blocks.takes
block_statistics = _blocks.statistics
weight_sums = _blocks.weight_sums


def loss_and_gradient(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    need_dx: bool,
    need_dr: bool,
    dloss: Tensor | None = None,
) -> Found:
    """Row losses, above 0 for the rows that keep a pair, and the gradients of the losses' sum."""
    sides = as_products(anchors, candidates, spec)
    need_dr = need_dx if sides.is_apart else need_dr
    how = spec, need_dx, need_dr, dloss
    losses, kept, dx, dr = _backend.loss_and_gradient(sides.rows, sides.columns, *how)
    return losses, kept, *sides.gradients(dx, dr)


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
    """Statistics beside losses and gradients, by the launch that computes those; None where options
    learn, whose sums of weights need finished statistics."""
    if option_values is not None:
        return None
    sides = as_products(anchors, candidates, spec)
    call = _call("loss_and_gradient", sides.rows, sides.columns, spec)
    found = call.counted_loss(need_dx, need_dx if sides.is_apart else need_dr, dloss)
    dx, dr = sides.gradients(found.dx, found.dr)
    return found._replace(dx=dx, dr=dr)


def reduced_loss_and_gradient(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    reduction: str,
    dtype: torch.dtype,
    need_dx: bool,
    need_dr: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """The loss and its gradients from one launch; None of a batch that is not small."""
    given = anchors, candidates, spec, reduction, dtype, need_dx, need_dr
    plan = plan_reduced(*given)
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
    if not _is_small(anchors, candidates, spec):
        return None
    sides = as_products(anchors, candidates, spec)
    call = _call("loss_and_gradient", sides.rows, sides.columns, spec)
    # Kernels write a loss in the dtype of their rows, or in that which they compute in.
    written = dtype if spec.distance is None else call.dtype
    plan = call.plan(reduction, written, need_dx, need_dx if sides.is_apart else need_dr)

    def run(anchors: Side, candidates: Side | None) -> Reduced:
        loss, factor, dx, dr = plan(anchors, candidates)
        assert loss is not None
        for gradient in (dx, dr):
            if gradient is not None and factor is not None:
                gradient.mul_(factor)
        return loss, dx, dr

    def run_longer(anchors: Side, candidates: Side | None) -> Reduced:
        sides = as_products(anchors, candidates, spec)
        loss, dx, dr = run(sides.rows, sides.columns)
        return loss.to(dtype), *sides.gradients(dx, dr)

    return run if spec.distance is None else run_longer


def plans_depend_on() -> Hashable:
    """Beside the arguments of plan_reduced."""
    return ONE_LAUNCH, SMALL, options.workspace_bytes, float32_products()
