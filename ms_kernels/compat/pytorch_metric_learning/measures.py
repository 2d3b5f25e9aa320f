"""What a distance object measures, as a similarity of the kernels: greater is nearer."""

from typing import Any, NamedTuple

from pytorch_metric_learning import distances
from torch import Tensor

EUCLIDEAN = {1: "euclidean", 2: "squared_euclidean"}


class Measure(NamedTuple):
    """x . r, or with a distance d the similarity -d, of rows that may be normalised."""

    normalize: bool
    distance: str | None

    def threshold(self, margin: float) -> float:
        """The similarity that a margin of the distance object stands for."""
        return margin if self.distance is None else -margin

    @property
    def nearest_is_itself(self) -> bool:
        """No row is nearer to a row than the row itself; of raw dot products one may be."""
        return self.normalize or self.distance is not None


def measure_of(distance: Any) -> Measure | str:
    """Or why there is none."""
    if type(distance) is distances.LpDistance:
        if distance.p == 2 and distance.power in EUCLIDEAN:
            return Measure(distance.normalize_embeddings, EUCLIDEAN[distance.power])
        return f"distance=LpDistance(p={distance.p}, power={distance.power})"
    if type(distance) in (distances.CosineSimilarity, distances.DotProductSimilarity):
        if distance.power == 1 and (distance.p == 2 or not distance.normalize_embeddings):
            return Measure(distance.normalize_embeddings, None)
        given = f"p={distance.p}, power={distance.power}"
        return f"distance={type(distance).__name__}({given})"
    return f"distance={type(distance).__name__}"


def record_norms(distance: Any, embeddings: Tensor, ref_emb: Tensor) -> None:
    """The four norms that a distance object records of the rows that it is given."""
    if distance.collect_stats:
        distance.reset_stats()
        sides = embeddings.detach(), ref_emb.detach()
        distance.set_default_stats(*sides, *map(distance.maybe_normalize, sides))
