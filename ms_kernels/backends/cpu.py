"""Fused CPU backend: similarity, mining, weighting and gradient of a tile in one C++ pass."""

from collections.abc import Hashable

import torch
from torch import Tensor

from ms_kernels.backends.blocks import hardest_by
from ms_kernels.backends.cpu_call import Call, module
from ms_kernels.backends.interface import (
    MOST_EXPONENT,
    Counted,
    Crowd,
    Known,
    Reduced,
    ReducedPlan,
    Side,
    Term,
)
from ms_kernels.backends.native import NativeBackend
from ms_kernels.backends.native_call import check_array, native_dtype, native_spec
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.mining import TopKMining
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.sums import WeightSums
from ms_kernels.rules.weighting import Circle, Triplet
from ms_kernels.settings import options

DEVICE = "cpu"
NOTE = "fused C++ kernels for CPU tensors"
MOST_SAMPLES = None
READS_ANY_DTYPE = True
# docs/performance.md has the measurement.
CROWD = Crowd(1024, of_class=True)


def missing() -> str | None:
    """None when the compiled module is here; else why not, and the way out."""
    try:
        module()
    except ImportError as error:
        return (
            f"the compiled module ms_kernels._cpu is not here ({error}); "
            "reinstall with a C++ compiler: pip install --no-deps . in the source folder. Python "
            "that runs in that folder finds its copy first, without the module: run elsewhere, or "
            "pip install --no-deps -e ."
        )
    return None


def refuses(spec: PairSpec, dtype: torch.dtype | None) -> str | None:
    """None when the kernels take these rules, else why not."""
    rule = spec.weighting
    # A circle's exponents dip by so much under that of the hardest pair, which sums refer to.
    if isinstance(rule, Circle) and rule.gamma * rule.m**2 > MOST_EXPONENT:
        return f"gamma * m**2 must be at most {MOST_EXPONENT}"
    return spec.unfit_options()


def serves_two_sides(spec: PairSpec) -> bool:
    """Of both sides in one sweep: no rules that list pairs of an anchor."""
    lists = isinstance(spec.mining, TopKMining) and spec.mining.k > 1
    return not lists and not isinstance(spec.weighting, Triplet)


def loss_of_statistics(stats: RowStatistics, spec: PairSpec) -> Tensor:
    """Row losses (N,) to the bits of `loss_and_gradient`; torch's depend on its threads."""
    native = module()
    stats = RowStatistics(*(s.contiguous() for s in stats))
    out = torch.empty_like(stats.neg_sum)
    for name, array in zip(stats._fields, stats, strict=True):
        check_array(name, array, out.numel(), torch.device("cpu"))
        wanted = torch.int64 if name.endswith("_kept") else out.dtype
        if array.dtype != wanted:
            raise ValueError(f"{name}: expected {wanted}, got {array.dtype}")
    native.row_loss(
        native_dtype(native, out),
        native_spec(spec, out.dtype),
        [s.data_ptr() for s in stats],
        out.data_ptr(),
        len(out),
    )
    return out


_backend = NativeBackend(Call)
row_statistics = _backend.row_statistics
embedding_gradient = _backend.embedding_gradient
loss_and_gradient = _backend.loss_and_gradient


def learns(spec: PairSpec) -> bool:
    """Whether options may: their values are read, for which nobody waits on a CPU."""
    return True


def learned_statistics(
    anchors: Side, candidates: Side | None, spec: PairSpec, option_values: Tensor
) -> RowStatistics:
    return row_statistics(anchors, candidates, _of_values(spec, option_values))


def learned_gradient(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    option_values: Tensor,
    term: Term,
    need_dx: bool,
    need_dr: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    spec = _of_values(spec, option_values)
    if isinstance(spec.weighting, Triplet):  # its pairs are listed anew
        dx = dr = None
        if need_dx or need_dr:
            how = need_dx, need_dr, term.dloss
            _, _, dx, dr = loss_and_gradient(anchors, candidates, spec, *how)
        return dx, dr, term.dloss.new_zeros(len(WeightSums._fields))
    call = Call("gradient", anchors, candidates, spec)
    return call.gradients_and_weights(term, need_dx, need_dr)


def counted_loss(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    need_dx: bool,
    need_dr: bool,
    dloss: Tensor | None,
    option_values: Tensor | None,
    weigh: bool,
) -> Counted:
    """Statistics beside losses and gradients, in one sweep."""
    if option_values is not None:
        spec = _of_values(spec, option_values)
    call = Call("loss_and_gradient", anchors, candidates, spec)
    return call.counted(need_dx, need_dr, dloss, weigh)


def _of_values(spec: PairSpec, option_values: Tensor) -> PairSpec:
    spec = spec.with_numbers(option_values)
    reason = refuses(spec, None)
    if reason is not None:
        raise ValueError(
            f"weighting: {spec.weighting!r}, as it has learned to be: {reason}; use "
            "backend='panels' or bound what learns"
        )
    return spec


def takes_blocks(spec: PairSpec) -> bool:
    """Lists of hardest negatives stay in the kernels, and triplets are pairs beside pairs."""
    return spec.mining.hardest_negatives == 1 and not isinstance(spec.weighting, Triplet)


hardest_of_block = hardest_by(row_statistics)


def block_statistics(
    anchors: Side, candidates: Side | None, spec: PairSpec, known: Known | None
) -> RowStatistics:
    """Statistics of each anchor, by what is known of more candidates than these."""
    call = Call("statistics", anchors, candidates, spec)
    if known is not None:
        call.read_known(known)
    return call.statistics()


def weight_sums(anchors: Side, candidates: Side | None, spec: PairSpec, term: Term) -> Tensor:
    """`WeightSums` (4,) of the anchors' pairs with these candidates."""
    call = Call("gradient", anchors, candidates, spec)
    return call.gradients_and_weights(term, False, False)[2]


def reduced_loss_and_gradient(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    reduction: str,
    dtype: torch.dtype,
    need_dx: bool,
    need_dr: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """The loss and its gradients; None of "mean_valid", whose divisor is known at the end."""
    if reduction == "mean_valid":
        return None
    return _planned(anchors, candidates, spec, reduction, dtype, need_dx, need_dr)(
        anchors, candidates
    )


def plan_reduced(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    reduction: str,
    dtype: torch.dtype,
    need_dx: bool,
    need_dr: bool,
) -> ReducedPlan | None:
    """What reduced_loss_and_gradient does, for all tensors of these kinds. None too of triplets,
    whose plan looks at the labels."""
    if reduction == "mean_valid" or isinstance(spec.weighting, Triplet):
        return None
    return _planned(anchors, candidates, spec, reduction, dtype, need_dx, need_dr)


def plans_depend_on() -> Hashable:
    """Beside the arguments of plan_reduced."""
    return module().instruction_set(), torch.get_num_threads(), options.workspace_bytes


def _planned(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    reduction: str,
    dtype: torch.dtype,
    need_dx: bool,
    need_dr: bool,
) -> ReducedPlan:
    call = Call("loss_and_gradient", anchors, candidates, spec)
    if spec.two_sided:
        call.anchor_both()
    scale = 1.0 if reduction == "sum" else 1.0 / max(call.losses.numel(), 1)
    plan = call.plan(scale, need_dx, need_dr)

    def run(anchors: Side, candidates: Side | None) -> Reduced:
        loss, _, dx, dr = plan(anchors, candidates)
        assert loss is not None
        return loss if loss.dtype == dtype else loss.to(dtype), dx, dr

    return run
