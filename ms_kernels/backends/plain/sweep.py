"""Any row loss in plain PyTorch, with its gradient, in one sweep of panels."""

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ms_kernels.backends.interface import Found, Side
from ms_kernels.backends.plain.sides import Panel, Sides, full_precision, through_normalisation
from ms_kernels.rules.mining import Mining, kept_pairs, version_of, written_into
from ms_kernels.rules.spec import PairOptions

RowFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
# Loss and number of kept pairs of each row of a panel; if wanted its pairs' weights, (rows, M).
PanelFunction = Callable[[Panel, bool], tuple[Tensor, Tensor, Tensor]]
# A panel and its derivative need some dozen temporaries of its size.
TEMPORARIES = 16


def sweep(
    of_panel: PanelFunction,
    anchors: Side,
    candidates: Side | None,
    spec: PairOptions,
    need_dx: bool,
    need_dr: bool,
    arrays: int = TEMPORARIES,
) -> Found:
    """Row losses (N,), kept pairs of each row (N,), gradients of the losses' sum.

    arrays: so many of a panel's size of_panel has at once.
    """
    sides = Sides(anchors, candidates, spec)
    x, r = sides.x, sides.r
    dx = torch.zeros_like(x) if need_dx else None
    dr = torch.zeros_like(r) if need_dr and candidates is not None else None
    into_columns = dx if candidates is None else dr
    # Allocated before the panels: what outlives them must not lie between their temporaries.
    loss, kept = x.new_zeros(len(x)), torch.zeros(len(x), dtype=torch.int64, device=x.device)
    with full_precision(x):
        for panel in sides.panels(arrays):
            some, count, weight = of_panel(panel, dx is not None or into_columns is not None)
            loss[panel.rows], kept[panel.rows] = some, count
            sides.add_gradient(panel, weight, dx, into_columns)
    if dx is not None:
        dx = through_normalisation(dx, x, anchors.embeddings, spec)
    if dr is not None and candidates is not None:
        dr = through_normalisation(dr, r, candidates.embeddings, spec)
    return loss, kept, dx, dr


def by_autograd(
    row_function: RowFunction, mining: Mining, dloss: Tensor | None = None
) -> PanelFunction:
    """row_function: as of `streamed_loss`. dloss: (N,) gradient of each row's loss, else ones."""
    return lambda panel, wanted: panel_loss(row_function, mining, panel, wanted, dloss)


def panel_loss(
    row_function: RowFunction,
    mining: Mining,
    panel: Panel,
    wanted: bool = False,
    dloss: Tensor | None = None,
    may_be_constant: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """A `PanelFunction` of rules.

    A loss without a gradient is an error unless it is 0, as of a panel without pairs, or may be.
    """
    if not wanted:
        with torch.no_grad():
            loss, kept = row_losses(row_function, mining, *panel[1:])
        return loss, kept, panel.sim
    with autograd():
        similarity = panel.sim.detach().requires_grad_()
        loss, kept = row_losses(row_function, mining, similarity, *panel[2:])
        if not loss.requires_grad:
            if not may_be_constant and loss.any():
                raise ValueError(
                    "row_loss: expected a loss that autograd can follow to the similarities, got "
                    "one without a gradient; is there a detach, item, numpy or no_grad in it?"
                )
            return loss, kept, torch.zeros_like(similarity)
        incoming = torch.ones_like(loss) if dloss is None else dloss[panel.rows].to(loss.dtype)
        (weight,) = torch.autograd.grad(loss, similarity, incoming, allow_unused=True)
    weight = torch.zeros_like(similarity) if weight is None else weight
    return loss.detach(), kept, weight.masked_fill(loss.detach().isnan()[:, None], math.nan)


@contextlib.contextmanager
def autograd() -> Iterator[None]:
    """A recording of its own inside another forward pass: also where a TorchDispatchMode or a
    compiled graph has the dispatcher pass over autograd, and unseen by the hooks of a checkpoint,
    which would run the whole forward pass again for what is used up here."""
    key, exclude = torch._C.DispatchKey, torch._C._dispatch_tls_local_exclude_set()
    exclude = exclude.remove(key.AutogradFunctionality).remove(key.ADInplaceOrView)
    include = torch._C._dispatch_tls_local_include_set()
    with (
        torch._C._ForceDispatchKeyGuard(include, exclude),
        _without_hooks(),
        torch.enable_grad(),
    ):
        yield


def _without_hooks() -> contextlib.AbstractContextManager[object]:
    # Only where there are some: of what hooks save, no edit in place is noticed. Before torch 2.8
    # nobody can ask.
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if top is not None and top(True) is None:
        return contextlib.nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(_itself, _itself)


def _itself(x: Tensor) -> Tensor:
    return x


def row_losses(
    row_function: RowFunction,
    mining: Mining,
    similarity: Tensor,
    positive: Tensor,
    negative: Tensor,
) -> tuple[Tensor, Tensor]:
    """(rows,) losses after mining and numbers of kept pairs; of a row with a similarity that is not
    finite NaN and 0."""
    with torch.no_grad():
        positive, negative = kept_pairs(mining, similarity, positive, negative)
        finite = similarity.isfinite().all(1)
        kept = (positive.sum(1) + negative.sum(1)) * finite
        # A factor and no summand: what a NaN loss weighs is NaN too.
        poison = torch.where(finite, 1.0, math.nan)
    version = version_of(similarity)
    try:
        loss = row_function(similarity, positive, negative)
    except RuntimeError as error:
        # Of a leaf autograd refuses the edit itself: a copy shows whether that was it.
        if similarity.requires_grad and _writes(row_function, similarity, positive, negative):
            raise ValueError(written_into("row_loss")) from error
        raise
    if version_of(similarity) != version:
        raise ValueError(written_into("row_loss"))
    rows = similarity.shape[:1]
    if not isinstance(loss, Tensor) or not loss.is_floating_point() or loss.shape != rows:
        got = f"{loss.dtype} {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise ValueError(
            f"row_loss: expected a floating-point loss for each row of the panel, shape "
            f"{tuple(rows)} for {rows[0]}, got {got}"
        )
    return loss * poison.to(loss.dtype), kept


def _writes(
    row_function: RowFunction, similarity: Tensor, positive: Tensor, negative: Tensor
) -> bool:
    copy = similarity.detach().clone()
    version = version_of(copy)
    try:
        with torch.no_grad():
            row_function(copy, positive, negative)
    except Exception:  # then it is the first error that tells more
        return False
    return version_of(copy) != version
