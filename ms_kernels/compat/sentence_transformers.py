"""sentence-transformers' loss of ranked negatives by the fused kernels.

>>> from ms_kernels.compat.sentence_transformers import MultipleNegativesRankingLoss
>>> loss = MultipleNegativesRankingLoss(model)

Only the interface of a model is used, so the package need not be here.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ms_kernels.api.functional import pair_loss
from ms_kernels.api.image_text import clip_loss
from ms_kernels.checks import check_choice, check_number
from ms_kernels.rules.softmax import NTXent

__all__ = ["MultipleNegativesRankingLoss", "MultipleNegativesSymmetricRankingLoss"]

FORWARD, BACKWARD = "query_to_doc", "doc_to_query"


class MultipleNegativesRankingLoss(nn.Module):
    """Cross-entropy of each query's document among all documents of the batch, negatives too.

    For queries q, documents d and any columns of negatives, with cosines S and N queries:
        mean over i of log sum_j exp(scale S(q_i, d_j)) - scale S(q_i, d_i),
    where j goes over the documents of all columns. Never N x M numbers at once.

    Args:
        model: called with each column of features, it returns a dict with "sentence_embedding",
            (N, D).
        scale: inverse of the temperature, above 0. Default 20.
        directions: ("query_to_doc",), or with "doc_to_query" the mean of that loss and of the
            cross-entropy of each document's query among all queries. partition_mode is
            "per_direction" then.
        similarity_fct, gather_across_devices, hardness_mode and hardness_strength of the original
            are errors: for those use sentence-transformers' own class.

    Source: Henderson et al., Efficient Natural Language Response Suggestion for Smart Reply, 2017,
    section 4.4.
    """

    def __init__(
        self,
        model: nn.Module,
        scale: float = 20.0,
        *,
        directions: tuple[str, ...] = (FORWARD,),
        partition_mode: str = "joint",
        backend: str = "auto",
        **unserved: Any,
    ) -> None:
        super().__init__()
        if unserved:
            raise TypeError(
                f"{type(self).__name__}: expected model, scale, directions, partition_mode and "
                f"backend, got {', '.join(unserved)}; sentence-transformers' own class has the rest"
            )
        check_number("scale", scale, above=0)
        check_choice("partition_mode", partition_mode, ("joint", "per_direction"))
        served = set(directions) in ({FORWARD}, {FORWARD, BACKWARD})
        if not served or (len(directions) > 1 and partition_mode == "joint"):
            raise ValueError(
                "directions, partition_mode: expected ('query_to_doc',), or ('query_to_doc', "
                "'doc_to_query') with 'per_direction', got "
                f"{directions!r}, {partition_mode!r}; sentence-transformers' own class has the rest"
            )
        self.model, self.scale, self.backend = model, float(scale), backend
        self.directions, self.partition_mode = tuple(directions), partition_mode

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> Tensor:
        """The loss of a batch: features of queries, of their documents, and of any negatives."""
        columns = [self.model(features)["sentence_embedding"] for features in sentence_features]
        return self.compute_loss_from_embeddings(columns, labels)

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None = None
    ) -> Tensor:
        """Of (N, D) embeddings of each column. labels are not looked at."""
        if len(embeddings) < 2:
            raise ValueError(
                "embeddings: expected queries and their documents, at least two columns, got "
                f"{len(embeddings)}"
            )
        _check_columns(embeddings)
        query, document, *negatives = embeddings
        both = len(self.directions) > 1
        if both and not negatives:
            return clip_loss(query, document, self.scale, backend=self.backend)
        # Two objects: the very rows with the very labels would be a batch with itself.
        own, same = (torch.arange(query.shape[0], device=query.device) for _ in range(2))
        # No query has a negative of its own label.
        others = [torch.full(rows.shape[:1], -1, device=rows.device) for rows in negatives]
        options: Any = {"weighting": NTXent(1 / self.scale), "backend": self.backend}
        documents, labels = torch.cat([document, *negatives]), torch.cat([own, *others])
        loss: Tensor = pair_loss(query, own, documents, labels, **options)
        if not both:
            return loss
        back: Tensor = pair_loss(document, own, query, same, **options)
        return (loss + back) / 2

    def get_config_dict(self) -> dict[str, Any]:
        """What a model card says of the loss."""
        names = "scale", "directions", "partition_mode"
        return {name: getattr(self, name) for name in names}


def _check_columns(embeddings: list[Tensor]) -> None:
    """By columns, which a user has, and not by the sides of pairs that they become."""
    for column, rows in enumerate(embeddings):
        if rows.ndim != 2 or rows.shape[1] != embeddings[0].shape[-1]:
            raise ValueError(
                "embeddings: expected (N, D) of one D in every column, got "
                f"{tuple(embeddings[0].shape)} in column 0 and {tuple(rows.shape)} in column "
                f"{column}"
            )
    queries, documents = (rows.shape[0] for rows in embeddings[:2])
    if queries != documents:
        raise ValueError(
            "embeddings: expected a document for each query, got "
            f"{queries} queries in column 0 and {documents} documents in column 1; documents of no "
            "query are negatives, and go into a column of their own"
        )


class MultipleNegativesSymmetricRankingLoss(MultipleNegativesRankingLoss):
    """`MultipleNegativesRankingLoss` in both directions."""

    def __init__(self, model: nn.Module, scale: float = 20.0, *, backend: str = "auto") -> None:
        both = (FORWARD, BACKWARD)
        super().__init__(
            model, scale, directions=both, partition_mode="per_direction", backend=backend
        )
