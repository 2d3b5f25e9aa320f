"""The one list of backends, dtypes, shapes and specs, and batches that dtype noise cannot flip."""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import ms_kernels
from ms_kernels import reference
from ms_kernels.backends.triton.tiles import tiles_of
from ms_kernels.rules.mining import mining_of
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import MultiSimilarity

# Those that serve CPU tensors at full speed; test_triton.py has the cases of the Triton kernels.
BACKENDS = [n for n in ("cpu", "panels") if ms_kernels.backends()[n].available]
# In turn on one batch, so that what is exact is computed once.
EACH_BACKEND = pytest.mark.parametrize("backend", BACKENDS)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class MultiSimilarityOptions:
    """The keywords of `multi_similarity_loss` that say what is computed."""

    alpha: float = 2.0
    beta: float = 50.0
    base: float = 0.5
    epsilon: float | None = 0.1
    max_positive_similarity: float | None = None
    normalize: bool = True

    @property
    def spec(self) -> PairSpec:
        return PairSpec(
            MultiSimilarity(self.alpha, self.beta, self.base),
            mining_of(self.epsilon),
            max_positive_similarity=self.max_positive_similarity,
            normalize=self.normalize,
        )


SPECS = {
    "default": MultiSimilarityOptions(),
    "paper": MultiSimilarityOptions(base=1.0),
    "released": MultiSimilarityOptions(beta=40.0, max_positive_similarity=1 - 1e-5),
    "unmined": MultiSimilarityOptions(epsilon=None),
    "sharp": MultiSimilarityOptions(alpha=60.0, beta=400.0, epsilon=0.3),
    "capped": MultiSimilarityOptions(max_positive_similarity=0.6),
    "raw": MultiSimilarityOptions(alpha=0.7, beta=3.0, normalize=False),
}

# (N, D): one tile and its edge (48), several (97, 193, 256), wider tiles (257, 389), widest (1030);
# depths of one vector, a ragged one, one chunk (192) and more.
BATCHES = [
    *[(2, 1), (5, 3), (47, 16), (48, 48), (49, 129), (97, 64)],
    *[(193, 47), (256, 193), (257, 16), (389, 200), (1030, 33)],
]
# Every shape with and without mining, a few of them with the other options.
BATCH_CASES = [(name, shape) for name in ("default", "unmined") for shape in BATCHES] + [
    (name, shape)
    for name in SPECS
    for shape in [(5, 3), (49, 129), (389, 200)]
    if name not in ("default", "unmined")
]
# Rows of 16 bits are widened as they are copied: in large batches they take turns.
BATCH_STEPS = [
    (name, shape, dtype)
    for name, shape in BATCH_CASES
    for dtype in DTYPES
    if shape[0] < 100 or dtype != (torch.bfloat16 if name == "unmined" else torch.float16)
]
# (N, M, D) with candidates of their own.
REFS = [(1, 7, 3), (7, 1, 3), (60, 500, 17), (500, 60, 48), (130, 1100, 70), (1100, 97, 200)]


class Batch(NamedTuple):
    x: Tensor
    y: Tensor
    r: Tensor | None
    z: Tensor | None

    def to(self, device):
        return Batch(*(v if v is None else v.to(device) for v in self))


RATIOS = []  # of error to budget, of one test after the other: conftest.py prints the largest


def assert_within_budget(got, same_dtype, exact, floor):
    """`got` may err by the greatest `floor`, what rounding alone may do: see rounding.py.

    Or, if that is more, by twice what the dense torch code errs, `same_dtype`: on a device that
    rounds otherwise than IEEE arithmetic, as tensor cores do. None on a CPU: there no error that
    the dense code makes, or on some machine by luck does not make, is a yardstick.
    """
    assert got.shape == exact.shape == floor.shape
    got, exact = got.double(), exact.double()
    finite = exact.isfinite()
    assert torch.equal(got.isfinite(), finite), "other elements are finite"
    assert torch.equal(got[~finite].nan_to_num(), exact[~finite].nan_to_num())
    if not finite.any():
        return
    allowed = float(floor[finite].max())
    if same_dtype is not None:
        spread = (same_dtype.double() - exact)[finite & same_dtype.isfinite()].abs()
        allowed = max(allowed, 2 * float(spread.max()) if len(spread) else 0.0)
    assert allowed < math.inf, "the floor is not finite"
    worst = float((got - exact)[finite].abs().max())
    assert worst <= allowed, f"error {worst:.3e} exceeds the budget {allowed:.3e}"
    RATIOS.append(worst / allowed if allowed else 0.0)


def incoming_gradient(count):
    """Of each row's loss, from -1 to 2: multiples of 1/64, which every dtype holds."""
    return torch.linspace(-64, 128, count, dtype=torch.float64).round() / 64


def random_rows(n, d, classes, spec, generator):
    """Class centres with noise, so that similarities of both kinds overlap."""
    y = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, d, generator=generator, dtype=torch.float64)
    x = centres[y] + torch.randn(n, d, generator=generator, dtype=torch.float64)
    if not spec.normalize:  # norms from about 0.5 to 4
        norm = 2 ** (3 * torch.rand(n, 1, generator=generator, dtype=torch.float64) - 1)
        x *= norm / (2 * d) ** 0.5
    return x, y


def unsettled(batch, spec):
    """Rows with a pair so near its mining threshold that float32 rounding may flip it."""
    x, y, r, z = batch
    options = {"max_positive_similarity": spec.max_positive_similarity, "normalize": spec.normalize}
    s, *kinds = reference.labelled_similarities(*batch, ids=None, ref_ids=None, **options)
    margin = 3e-6 * max(1.0, float(s.abs().max())) if s.numel() else 0.0
    same = y[:, None] == (y if z is None else z)[None, :]
    near = torch.zeros_like(same)
    if spec.max_positive_similarity is not None:
        near |= same & ((s - spec.max_positive_similarity).abs() < margin)
    if spec.epsilon is not None:
        least, most = reference.hardest(s, *kinds)
        threshold = torch.where(same, most + spec.epsilon, least - spec.epsilon)
        near |= threshold.sub_(s).abs_() < margin
    if r is None:
        near.fill_diagonal_(False)
    return near.any(1)


@functools.cache
def make_batch(n, m, d, spec, dtype, seed=0):
    """n anchors and m candidates (None: self mode) without unsettled pairs, rounded to dtype."""
    generator = torch.Generator().manual_seed(1000 * n + d + seed)
    classes = max(2, min(n, 1 + (n if m is None else max(n, m)) // 6))
    extra = n // 2 * max(1, n // 1000) + 8  # pairs near a threshold grow as n squared
    x, y = random_rows(n + extra, d, classes, spec, generator)
    x = x.to(dtype).double()
    r = z = None
    if m is not None:
        r, z = random_rows(m + m // 2 + 8, d, classes, spec, generator)
        r = r.to(dtype).double()
    take = Batch(x, y, r, z)
    for _ in range(50):
        cut = Batch(take.x[:n], take.y[:n], *(v if v is None else v[:m] for v in take[2:]))
        rows = unsettled(cut, spec)
        if not rows.any():
            return Batch(cut.x.to(dtype), cut.y, None if r is None else cut.r.to(dtype), cut.z)
        drop = torch.zeros(len(take.x), dtype=torch.bool)
        drop[: len(rows)] = rows
        assert len(take.x) - int(drop.sum()) >= n, "more rows were unsettled than are spare"
        take = take._replace(x=take.x[~drop], y=take.y[~drop])
    raise AssertionError("no settled batch was found")


def deeper_than_held_whole(device):
    """A ragged depth of half rows of which no program of the Triton kernels holds any whole there:
    70 in the interpreter, 262 by the table of every GPU."""
    return max(tiles_of("half", torch.device(device)).owner) + 6


def case_id(value):
    """Readable ids: cpu-float32-N193_D47-default."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, tuple):
        return "_".join(
            f"{k}{v}" for k, v in zip("NMD" if len(value) == 3 else "ND", value, strict=True)
        )
    return str(value)
