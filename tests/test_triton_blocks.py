"""Blocks of candidates in the Triton kernels, by the hardest pairs of all."""

import pytest
import torch
from blocks import assert_joined, sides
from family import MININGS, WEIGHTINGS, name_of

from ms_kernels.backends import triton
from ms_kernels.rules import mining as mine
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import Circle, MultiSimilarity

pytestmark = pytest.mark.skipif(triton.missing() is not None, reason=str(triton.missing()))

TAKEN = [
    *[(MultiSimilarity(), mining) for mining in MININGS],
    *[(rule, mine.MultiSimilarityMining(0.1)) for rule in WEIGHTINGS],
    (Circle(), mine.SemiHardMining(0.5)),
    (Circle(), mine.HardestMining()),
]
TAKEN = [rules for rules in TAKEN if triton.takes_blocks(PairSpec(*rules))]


@pytest.mark.parametrize(("weighting", "mining"), TAKEN, ids=name_of)
def test_joined_they_are_those_of_all(weighting, mining):
    assert_joined(triton, *sides(), PairSpec(weighting, mining, max_positive_similarity=0.8))


@pytest.mark.parametrize("classes", [1, 40])
def test_anchors_with_one_kind_of_pair(classes):
    for mining in (mine.MultiSimilarityMining(), mine.HardestMining()):
        assert_joined(triton, *sides(classes=classes), PairSpec(MultiSimilarity(), mining))


def test_who_is_taken():
    assert len(TAKEN) == 17
    for weighting, mining in ((MultiSimilarity(), mine.TopKMining(3)), (WEIGHTINGS[7], MININGS[0])):
        assert not triton.takes_blocks(PairSpec(weighting, mining))


def test_distances():
    apart = {"distance": "euclidean", "normalize": False}
    spec = PairSpec(MultiSimilarity(2.0, 5.0, -1.0), mine.MultiSimilarityMining(0.1), **apart)
    anchors, candidates = sides()
    assert_joined(triton, anchors, candidates, spec)
    assert torch.isfinite(triton.row_statistics(anchors, candidates, spec).neg_sum).all()
