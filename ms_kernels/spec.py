"""The options of a loss: declared here and nowhere else."""

import functools
import math
import sys
from dataclasses import dataclass, fields
from typing import Any

LARGEST = sys.float_info.max


@dataclass(frozen=True)
class MultiSimilaritySpec:
    """Options of the Multi-Similarity loss (Wang et al., CVPR 2019, equations 13 to 15).

    alpha, beta: scale of positive and negative similarities, > 0.
    base: similarity at which a pair's exponent is 0.
    epsilon: mining slack in units of similarity; None keeps every pair.
    max_positive_similarity: positives at or above it are no pairs; None keeps them.
    normalize: divide each row by its L2 norm first.
    """

    alpha: float = 2.0
    beta: float = 50.0
    base: float = 0.5
    epsilon: float | None = 0.1
    max_positive_similarity: float | None = None
    normalize: bool = True

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "base", "epsilon", "max_positive_similarity"):
            value = getattr(self, name)
            optional = name in ("epsilon", "max_positive_similarity")
            if value is None and optional:
                continue
            wanted = "a finite number or None" if optional else "a finite number"
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name}: expected {wanted}, got {value!r}")
            if not -LARGEST <= value <= LARGEST:  # torch.compile has no isfinite of a symbol
                raise ValueError(f"{name}: expected {wanted}, got {value}")
        if not isinstance(self.normalize, bool):
            raise TypeError(f"normalize: expected True or False, got {self.normalize!r}")
        for name in ("alpha", "beta"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")

    def by_name(self) -> dict[str, Any]:
        """The options as keywords; torch.compile of torch 2.11 cannot trace vars(spec)."""
        return {name: getattr(self, name) for name in NAMES}

    def pack(self) -> list[float]:
        """The options in the order of their declaration, None as infinity: what an op can take."""
        return [math.inf if v is None else float(v) for v in self.by_name().values()]

    def narrow_epsilon(self, most: float) -> float:
        """epsilon for a dtype of greatest number `most`: finite stays finite, None is infinity."""
        return math.inf if self.epsilon is None else max(-most, min(most, self.epsilon))

    @staticmethod
    def unpack(packed: list[float]) -> "MultiSimilaritySpec":
        return _unpacked(tuple(packed))


NAMES = tuple(field.name for field in fields(MultiSimilaritySpec))


@functools.lru_cache(maxsize=64)
def _unpacked(packed: tuple[float, ...]) -> MultiSimilaritySpec:
    values = dict(zip(NAMES, (None if math.isinf(v) else v for v in packed), strict=True))
    return MultiSimilaritySpec(**{**values, "normalize": bool(values["normalize"])})  # type: ignore[arg-type]
