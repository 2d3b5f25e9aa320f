"""A replaced loss: its pairs by the kernels, its reducer, regularizer and records as they are."""

import functools
from typing import Any

import torch
from pytorch_metric_learning import reducers
from torch import Tensor

from ms_kernels.backends.interface import compute_dtype
from ms_kernels.checks import check_flag
from ms_kernels.compat.pytorch_metric_learning.choosing import served_measure
from ms_kernels.compat.pytorch_metric_learning.fallible import Fallible, Unserved
from ms_kernels.compat.pytorch_metric_learning.measures import Measure, record_norms
from ms_kernels.compat.pytorch_metric_learning.pairs import Call, call_of
from ms_kernels.compat.pytorch_metric_learning.reducing import LossDict, Totals, record_sizes
from ms_kernels.compat.pytorch_metric_learning.unlisted import Unlisted
from ms_kernels.engine.refusals import refuse_second_derivative, refuse_transforms

DIFFERENTIATED_ONCE = (
    "pytorch_metric_learning's own class has one with CosineSimilarity or DotProductSimilarity, "
    "and none with LpDistance"
)
NOT_TRANSFORMED = "use pytorch_metric_learning's own class, as far as PyTorch transforms that"


class Served(Fallible):
    """Mixed into a loss of pytorch-metric-learning, before it.

    exact_small_batches: a batch with at most one positive and one negative pair costs 0, as there.
        False gives such a batch the loss that the formula says.

    Half is computed and reduced in float32, in which a sum of losses stays. Of `calls` the names
    are "kernels", "streamed" by formula, "lists" of pairs, and "fallback".
    """

    distance: Any
    reducer: Any

    def __init__(self, *args: Any, exact_small_batches: bool = True, **kwargs: Any) -> None:
        check_flag("exact_small_batches", exact_small_batches)
        super().__init__(*args, **kwargs)
        self.exact_small_batches = exact_small_batches
        self.sizes: dict[str, Totals] = {}

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Any:
        """The reduced loss: see pytorch-metric-learning."""
        if ref_emb is embeddings and ref_labels is labels:
            ref_emb = ref_labels = None
        call = call_of(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        self.reset_stats()  # type: ignore[attr-defined]
        self.sizes.clear()
        try:
            self.check_served()
            losses = self.losses_of(call, served_measure(self.distance))
        except Unserved as option:
            self.fall_back(str(option))
            if isinstance(indices_tuple, Unlisted):
                indices_tuple = tuple(indices_tuple)
            given = embeddings, labels, indices_tuple, ref_emb, ref_labels
            return super().forward(*given)  # type: ignore[misc]
        except RuntimeError:
            sides = {"embeddings": embeddings, "ref_emb": ref_emb}
            refuse_transforms(type(self).__name__, NOT_TRANSFORMED, **sides)
            raise
        self.record(call)
        wide = embeddings.to(compute_dtype(embeddings))
        self.add_embedding_regularization_to_loss_dict(losses, wide)  # type: ignore[attr-defined]
        try:
            loss = self.reducer(losses, wide, call.labels)
            record_sizes(self)
        finally:  # they hold the graph, with which no module can be copied
            self.sizes.clear()
        loss = loss if is_a_sum(self.reducer) else narrowed(loss, embeddings)
        refuse_a_second(loss, type(self).__name__)
        return loss

    def record(self, call: Call) -> None:
        """What the distance object records of the rows that are compared."""
        record_norms(self.distance, call.embeddings, call.ref_emb)

    def losses_of(self, call: Call, measure: Measure) -> LossDict:
        """What the reducer is given, as of `compute_loss`; `Unserved` before any work."""
        raise NotImplementedError


def is_a_sum(reducer: Any) -> bool:
    """Whether some of what it reduces is added up, to a number that float16 may not hold."""
    return any(isinstance(part, reducers.SumReducer) for part in reducer.modules())


def narrowed(loss: Any, embeddings: Tensor) -> Any:
    """In the embeddings' dtype, last of all; under autocast as it is."""
    if isinstance(loss, dict):
        return {name: narrowed(of, embeddings) for name, of in loss.items()}
    if not isinstance(loss, Tensor) or not loss.is_floating_point():
        return loss
    if torch.is_autocast_enabled(embeddings.device.type):
        return loss
    return loss.to(embeddings.dtype)


def refuse_a_second(loss: Any, name: str) -> None:
    """Derivative, of which the kernels would name a way out that a class of ours does not have."""
    if isinstance(loss, dict):
        for of in loss.values():
            refuse_a_second(of, name)
    elif isinstance(loss, Tensor) and loss.requires_grad and not torch.compiler.is_compiling():
        # Of a hook, not a function, whose result could not be written into.
        refuse = functools.partial(refuse_second_derivative, name, DIFFERENTIATED_ONCE)
        loss.register_hook(lambda _: refuse())  # type: ignore[no-untyped-call]
