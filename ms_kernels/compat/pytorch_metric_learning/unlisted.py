"""A tuple of indices that are not listed until somebody looks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, SupportsIndex, TypeVar

import torch
from torch import Tensor

from ms_kernels.checks import Pairs
from ms_kernels.compat.pytorch_metric_learning.measures import Measure
from ms_kernels.compat.pytorch_metric_learning.pairs import candidates_of
from ms_kernels.rules.mining import version_of

Own = TypeVar("Own", bound="Unlisted")


class _Place(torch.Tensor):
    """What lies in the tuple as C code sees it, such as torch.cat: sent on to the lists."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not any(isinstance(arg, Unlisted) for arg in args):
            raise RuntimeError("indices were taken out of their tuple unseen; use tuple(indices)")
        listed = (tuple(arg) if isinstance(arg, Unlisted) else arg for arg in args)
        return func(*listed, **(kwargs or {}))


_PLACE = torch.zeros(0, dtype=torch.int64).as_subclass(_Place)


class Unlisted(tuple[Tensor, ...]):
    """Lists as pytorch-metric-learning's miners return them, made when the tuple is unpacked,
    indexed or iterated, and not before. What it holds are the rows, detached, and their labels."""

    places = 4
    pairs: Pairs
    measure: Measure | None  # None of what is the same however it is measured
    _versions: tuple[int, ...]
    _lists: tuple[Tensor, ...] | None
    _gathered: tuple[Tensor, Tensor | None] | None

    def __new__(cls: type[Own], pairs: Pairs, measure: Measure | None) -> Own:
        self = super().__new__(cls, (_PLACE,) * cls.places)
        x, labels, ids, r, ref_labels, ref_ids = pairs
        r = None if r is None else r.detach()
        self.pairs = Pairs(x.detach(), labels, ids, r, ref_labels, ref_ids)
        self.measure = measure
        self._versions = _versions(self.pairs)
        self._lists = self._gathered = None
        return self

    def made(self) -> tuple[Tensor, ...]:
        """The lists, by the rule."""
        raise NotImplementedError

    def counts(self) -> tuple[int, int, int]:
        """Numbers of positive pairs, of negative pairs, and of triplets."""
        raise NotImplementedError

    def again(self: Own, pairs: Pairs) -> Own:
        """The same rule of other rows."""
        raise NotImplementedError

    def at(
        self: Own,
        embeddings: Tensor,
        ref_emb: Tensor | None,
        ids: Tensor | None = None,
        ref_ids: Tensor | None = None,
    ) -> Own:
        """The same of equal rows that lie elsewhere. ids: told anew, if they are given; pairs of
        equal ids, which are of one label, are left out."""
        _, labels, own_ids, _, ref_labels, own_ref_ids = self.pairs
        if ids is None:
            ids, ref_ids = own_ids, own_ref_ids
        return self.again(Pairs(embeddings, labels, ids, ref_emb, ref_labels, ref_ids))

    def live(self, embeddings: Tensor, ref_emb: Tensor, measure: Measure) -> Pairs | None:
        """The pairs with these rows; None of other rows, or of what is measured otherwise: there
        only the lists tell which they are."""
        if self.measure not in (None, measure):
            return None
        mined = self.pairs.embeddings, candidates_of(self.pairs)
        if not all(map(are_same, mined, (embeddings, ref_emb))):
            return None
        self.check_versions()
        _, labels, ids, refs, ref_labels, ref_ids = self.pairs
        candidates = None if refs is None else ref_emb
        return Pairs(embeddings, labels, ids, candidates, ref_labels, ref_ids)

    def check_versions(self) -> None:
        if _versions(self.pairs) != self._versions:
            raise RuntimeError(
                "indices_tuple: expected embeddings and labels as they were when they were "
                "mined, got some that were written into; mine after that, or keep tuple(miner(...))"
            )

    def gathered_from(self: Own, embeddings: Tensor, ref_emb: Tensor | None) -> Own:
        """Itself, of rows of all processes, of which these are those of this one."""
        self._gathered = embeddings.detach(), None if ref_emb is None else ref_emb.detach()
        return self

    def is_gathered_from(self, embeddings: Tensor, ref_emb: Tensor | None) -> bool:
        if self._gathered is None:
            return False
        own, refs = self._gathered
        if refs is None or ref_emb is None:
            return refs is ref_emb and are_same(own, embeddings)
        return are_same(own, embeddings) and are_same(refs, ref_emb)

    def lists(self) -> tuple[Tensor, ...]:
        if self._lists is None:
            self.check_versions()
            self._lists = self.made()
        return self._lists

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.lists())

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        return self.lists()[index]

    def __add__(self, other: Any) -> Any:
        return self.lists() + tuple(other)

    def __radd__(self, other: Any) -> Any:
        return tuple(other) + self.lists()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __reduce__(self) -> Any:
        return tuple, (list(self.lists()),)


def are_same(kept: Tensor, given: Tensor) -> bool:
    """Whether they are one piece of memory, as a tensor and its detach: `kept` keeps it alive."""
    alike = kept.dtype == given.dtype and kept.shape == given.shape
    alike = alike and kept.stride() == given.stride() and kept.device == given.device
    return alike and kept.data_ptr() == given.data_ptr()


def _versions(pairs: Pairs) -> tuple[int, ...]:
    labels = pairs.labels if pairs.ref_labels is None else pairs.ref_labels
    looked_at = pairs.embeddings, candidates_of(pairs), pairs.labels, labels
    return tuple(map(version_of, looked_at))
