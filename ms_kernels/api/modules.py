"""Losses as modules: any weighting rule with any mining rule, and the Multi-Similarity loss."""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypedDict

from torch import Tensor, nn
from typing_extensions import Never

from ms_kernels.api.counting import check_ignore_label, row_weights
from ms_kernels.api.hints import refuse_unknown
from ms_kernels.api.histogram import Histogram, check_of_batch
from ms_kernels.api.known import Tensors
from ms_kernels.api.learned import OF_ANY_RULE, check_kept, may_learn, way_out
from ms_kernels.api.road import (
    Counting,
    check_rules,
    in_plain_pytorch,
    loss_and_statistics,
    loss_of,
    no_statistics,
)
from ms_kernels.backends.dispatch import NAMES, check_known
from ms_kernels.checks import Pairs, check_choice, check_flag
from ms_kernels.reference import REDUCTIONS, RowStatistics
from ms_kernels.rules.made import options_of, spec_of
from ms_kernels.rules.mining import Mining, MultiSimilarityMining, NoMining, mining_of
from ms_kernels.rules.spec import PairOptions
from ms_kernels.rules.sums import Option
from ms_kernels.rules.weighting import (
    MultiSimilarity,
    Weighting,
)


def _names_of(function: Callable[..., Any]) -> list[str]:
    names = inspect.signature(function).parameters
    return [name for name in names if name not in ("self", "unknown")]


class LossOptions(TypedDict, total=False):
    """What every module takes besides the options of its rule: see `PairLoss`."""

    mining: Mining | None
    max_positive_similarity: float | None
    normalize: bool
    distance: str | None
    reduction: str
    backend: str
    ignore_label: int | None
    keep_statistics: bool


class PairLoss(nn.Module):
    """`pair_loss` with its rules and options fixed; see there for the arguments.

    weighting: a weighting rule; options of it that are parameters are the module's own. mining: a
        mining rule; default NoMining(), which keeps every pair.
    max_positive_similarity, normalize, distance, reduction, backend, ignore_label: default None,
        True, None, "mean", "auto", None.
    keep_statistics: have `statistics` of the last call. Default False.
    """

    def __init_subclass__(cls, rule: type[Weighting] | None = None, beside: str = "") -> None:
        """Of a module named after a rule, help() shows the rule's formula and all options.

        beside: a sentence about what other libraries call so.
        """
        super().__init_subclass__()
        if rule is None:
            return
        own = inspect.signature(rule).parameters.values()
        shared = inspect.signature(PairLoss.__init__).parameters.values()
        others = [
            p.replace(kind=p.KEYWORD_ONLY)
            for p in shared
            if p.name not in ("self", "weighting", "unknown")
        ]
        cls.__signature__ = inspect.Signature([*own, *others])  # type: ignore[attr-defined]
        cls.__doc__ = (
            f"`PairLoss` of the weighting rule {rule.__name__}; every pair is kept unless mining\n"
            f"is given, such as mining=MultiSimilarityMining().\n\n{beside}    {rule.__doc__}"
        )

    def __init__(
        self,
        weighting: Weighting,
        mining: Mining | None = None,
        *,
        max_positive_similarity: float | None = None,
        normalize: bool = True,
        distance: str | None = None,
        reduction: str = "mean",
        backend: str = "auto",
        ignore_label: int | None = None,
        keep_statistics: bool = False,
        **unknown: Never,
    ) -> None:
        super().__init__()
        if unknown:
            refuse_unknown(type(self).__name__, unknown, _names_of(type(self)))
        mining = NoMining() if mining is None else mining
        check_rules(weighting, mining)
        check_choice("reduction", reduction, REDUCTIONS)
        check_of_batch(weighting, reduction, distance)
        check_choice("backend", backend, NAMES)
        check_ignore_label(ignore_label)
        check_flag("keep_statistics", keep_statistics)
        shared = options_of(max_positive_similarity, normalize, distance)
        if distance is not None:
            _warn_of_a_similarity(type(self).__name__, weighting)
        spec = spec_of(weighting, mining, shared)
        learns = bool(weighting.learned) and may_learn(weighting, mining, shared, backend)
        if weighting.learned and not learns and backend not in OF_ANY_RULE:
            raise ValueError(way_out(weighting, backend))
        if not learns:
            check_known(backend, spec, weighting, mining)
        if keep_statistics and spec is None and not learns:
            raise ValueError(no_statistics("keep_statistics", weighting, mining))
        if keep_statistics:
            check_kept(weighting, mining, shared, backend)
        for name, option in weighting.learned.items():
            if isinstance(option, nn.Parameter):
                self.register_parameter(name, option)
        self.weighting, self.mining = weighting, mining
        self.fused = spec is not None
        self.of_batch = isinstance(weighting, Histogram)  # and not of anchors
        self.options: dict[str, Any] = {
            "max_positive_similarity": shared.max_positive_similarity,
            "normalize": normalize,
            "distance": distance,
            "reduction": reduction,
            "backend": backend,
            "ignore_label": ignore_label,
        }
        self.keep_statistics = keep_statistics
        self._statistics: RowStatistics | None = None

    @property
    def statistics(self) -> RowStatistics:
        """Of the anchors of the last call, if keep_statistics=True: hardest pairs, numbers of kept
        pairs and of active anchors. Constants, on the device: reading one waits for a GPU.

        >>> loss = MultiSimilarityLoss(keep_statistics=True)
        >>> loss(embeddings, labels).backward()
        >>> mined = loss.statistics.active.float().mean()
        """
        # No AttributeError, which a module takes for a name that it does not know.
        if self._statistics is None:
            raise RuntimeError(
                f"{type(self).__name__}.statistics: expected keep_statistics=True and a call "
                f"before, got keep_statistics={self.keep_statistics}"
            )
        return self._statistics

    def keep(self, statistics: RowStatistics) -> None:
        """Those of a loss that is computed elsewhere, as of several processes."""
        self._statistics = statistics

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ids: Tensor | None = None,
        ref_ids: Tensor | None = None,
        anchor_mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
        **unknown: Never,
    ) -> Tensor:
        """The reduced loss of (N, D) embeddings and their (N,) labels: see `pair_loss`."""
        if unknown and unknown != {"indices_tuple": None}:  # which another library's loops pass
            refuse_unknown(f"{type(self).__name__}()", unknown, _names_of(self.forward))
        return self.compute(
            (embeddings, labels, ref_emb, ref_labels, ids, ref_ids),
            (self.options["ignore_label"], anchor_mask, sample_weight),
        )

    @property
    def shared(self) -> PairOptions:
        """What all losses share."""
        names = "max_positive_similarity", "normalize", "distance"
        return options_of(*(self.options[name] for name in names))

    @property
    def rule(self) -> Weighting:
        """The weighting rule with the parameters that the module has now: they may be others than
        those that it was made of."""
        return replace(self.weighting, **self._parameters) if self._parameters else self.weighting

    def with_weighting(self, weighting: Weighting) -> "PairLoss":
        """The same with another rule; itself if it is its own."""
        if weighting is self.weighting:
            return self
        options = {**self.options, "keep_statistics": self.keep_statistics}
        return PairLoss(weighting, self.mining, **options)

    def in_plain_pytorch(self, pairs: Pairs) -> bool:
        """Whether autograd looks at these candidates once more in the backward pass."""
        given = self.rule, self.mining, self.shared, self.options["backend"]
        return in_plain_pytorch(loss_of(*given), pairs)

    def weights_of(
        self,
        pairs: Pairs,
        anchor_mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor | None:
        """`row_weights` with its ignore_label. Of a loss of the batch there are none: ids leave out
        the rows that do not count."""
        if self.of_batch and anchor_mask is None and sample_weight is None:
            return None
        return row_weights(pairs, self.options["ignore_label"], anchor_mask, sample_weight)

    def compute(self, tensors: Tensors, counting: Counting) -> Tensor:
        """Of the tensors of `forward` in their order, and of what counts in the order of
        `pair_loss`."""
        names = "max_positive_similarity", "normalize", "distance", "reduction", "backend"
        cap, normalize, distance, reduction, backend = (self.options[name] for name in names)
        loss, statistics = loss_and_statistics(
            tensors,
            (self.rule, self.mining),
            (cap, normalize, distance, reduction, backend),
            counting,
            self.keep_statistics,
        )
        if statistics is not self._statistics:  # a module takes its time to set an attribute
            self._statistics = statistics
        return loss

    def extra_repr(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{self.weighting!r}, {self.mining!r}, {options}"


class MultiSimilarityLoss(PairLoss):
    """`multi_similarity_loss` with its options fixed; see there for formula and arguments.

    It mines its pairs itself: what pytorch-metric-learning does by its class of this name and a
    miner beside it. `ms_kernels.compat` has that class.
    """

    def __init__(
        self,
        alpha: Option = MultiSimilarity.alpha,
        beta: Option = MultiSimilarity.beta,
        base: Option = MultiSimilarity.base,
        epsilon: float | None = MultiSimilarityMining.epsilon,
        max_positive_similarity: float | None = None,
        normalize: bool = True,
        reduction: str = "mean",
        backend: str = "auto",
        ignore_label: int | None = None,
        keep_statistics: bool = False,
        distance: str | None = None,
        **unknown: Never,
    ) -> None:
        super().__init__(
            MultiSimilarity(alpha, beta, base),
            mining_of(epsilon),
            max_positive_similarity=max_positive_similarity,
            normalize=normalize,
            distance=distance,
            reduction=reduction,
            backend=backend,
            ignore_label=ignore_label,
            keep_statistics=keep_statistics,
            **unknown,
        )

    @classmethod
    def paper(cls, **options: Any) -> "MultiSimilarityLoss":
        """The paper's constants: alpha 2, beta 50, base 1, epsilon 0.1."""
        return cls(**{"alpha": 2.0, "beta": 50.0, "base": 1.0, "epsilon": 0.1, **options})

    @classmethod
    def released(cls, **options: Any) -> "MultiSimilarityLoss":
        """The released code's: alpha 2, beta 40, base 0.5; positives at S >= 1 - 1e-5 dropped."""
        constants = {"alpha": 2.0, "beta": 40.0, "base": 0.5, "epsilon": 0.1}
        return cls(**{**constants, "max_positive_similarity": 1 - 1e-5, **options})


def _warn_of_a_similarity(owner: str, rule: Weighting) -> None:
    """Of a loss of distances whose margin or base none of them reaches."""
    name = "negative_margin" if hasattr(rule, "negative_margin") else "base"
    value = getattr(rule, name, None)
    if isinstance(value, (int, float)) and (value > 0 or (value == 0 and name != "base")):
        warnings.warn(
            f"{owner}: similarities are distances below 0, which {name}={value:g} is above: "
            f"negatives are left alone; give one below 0, such as {name}=-1.0",
            stacklevel=4,
        )
