"""Losses as modules: they hold options and call the function of the same name."""

from typing import Any

from torch import Tensor, nn

from ms_kernels.api.functional import multi_similarity_loss
from ms_kernels.backends.dispatch import NAMES
from ms_kernels.checks import check_choice
from ms_kernels.reference import REDUCTIONS
from ms_kernels.rules.spec import MultiSimilaritySpec


class MultiSimilarityLoss(nn.Module):
    """`multi_similarity_loss` with its options fixed; see there for formula and arguments."""

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        epsilon: float | None = 0.1,
        max_positive_similarity: float | None = None,
        normalize: bool = True,
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.spec = MultiSimilaritySpec(
            alpha, beta, base, epsilon, max_positive_similarity, normalize
        )
        check_choice("reduction", reduction, REDUCTIONS)
        check_choice("backend", backend, NAMES)
        self.reduction = reduction
        self.backend = backend

    @classmethod
    def paper(cls, **options: Any) -> "MultiSimilarityLoss":
        """The paper's constants: alpha 2, beta 50, base 1, epsilon 0.1."""
        return cls(**{"alpha": 2.0, "beta": 50.0, "base": 1.0, "epsilon": 0.1, **options})

    @classmethod
    def released(cls, **options: Any) -> "MultiSimilarityLoss":
        """The released code's: alpha 2, beta 40, base 0.5; positives at S >= 1 - 1e-5 dropped."""
        constants = {"alpha": 2.0, "beta": 40.0, "base": 0.5, "epsilon": 0.1}
        return cls(**{**constants, "max_positive_similarity": 1 - 1e-5, **options})

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ids: Tensor | None = None,
        ref_ids: Tensor | None = None,
    ) -> Tensor:
        return multi_similarity_loss(
            embeddings,
            labels,
            ref_emb,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            reduction=self.reduction,
            backend=self.backend,
            **self.spec.by_name(),
        )

    def extra_repr(self) -> str:
        options = {**self.spec.by_name(), "reduction": self.reduction, "backend": self.backend}
        return ", ".join(f"{name}={value!r}" for name, value in options.items())
