"""Blocks of candidates in the kernels of a GPU, by Triton's interpreter and by CUDA on the host: of
rules whose blocks know nothing of one another."""

import functools

import pytest
import torch
from family import WEIGHTINGS, name_of
from host_gpu import build
from host_gpu.serve import serve

from ms_kernels.backends import cuda, panels, triton
from ms_kernels.backends.interface import Side, Term
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh
from ms_kernels.rules.spec import PairSpec

MININGS = mine.NoMining(), mine.ThresholdMining(0.6, -0.1)
APART = [rule for rule in WEIGHTINGS if cuda.takes_blocks(PairSpec(rule, mine.NoMining()))]
WAYS = ["triton", "one_launch", "by_tiles"]  # small batches have kernels of reduced losses alone


@pytest.fixture(params=WAYS)
def module(request, monkeypatch):
    if request.param == "triton":
        if triton.missing() is not None:
            pytest.skip(str(triton.missing()))
        return triton
    if build.why_not() is not None:
        pytest.skip(str(build.why_not()))
    serve(monkeypatch, build.module(), request.param)
    return cuda


def sides():
    """Anchors that are among the candidates, by their ids, and these in blocks of uneven size."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(70, 6, generator=generator, dtype=torch.float64)
    everybody = x, torch.arange(70) % 9, torch.arange(70)
    blocks = [
        Side(*(t[a:b].clone() for t in everybody)) for a, b in ((0, 3), (3, 4), (4, 40), (40, 70))
    ]
    return Side(*(t[:31].clone() for t in everybody)), Side(*everybody), blocks


def joined(parts, spec):
    adds = [torch.logaddexp if log else torch.add for log in spec.weighting.log_sums]
    ways = [torch.minimum, torch.maximum, *adds, torch.add, torch.add, torch.add]
    every = zip(ways, zip(*parts, strict=True), strict=True)
    return [functools.reduce(way, numbers) for way, numbers in every]


@pytest.mark.parametrize("mining", MININGS, ids=name_of)
@pytest.mark.parametrize("weighting", APART, ids=name_of)
def test_blocks_add_up(module, weighting, mining):
    """Statistics, gradients of both terms, and the sums of weights."""
    spec = PairSpec(weighting, mining)
    assert module.takes_blocks(spec)
    anchors, everybody, blocks = sides()
    want = panels.row_statistics(anchors, everybody, spec)
    stats = [module.block_statistics(anchors, block, spec, None) for block in blocks]
    assert len(APART) == 10
    for name, got, exact in zip(want._fields, joined(stats, spec), want, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: n + m)
    own = Term(want, torch.linspace(0.5, 2, 31, dtype=torch.float64))
    theirs = panels.row_statistics(everybody, everybody, spec)
    worth = torch.linspace(2, 0.5, 70, dtype=torch.float64)
    exact = panels.embedding_gradient(anchors, everybody, spec, own, Term(theirs, worth))
    total, sums, start = torch.zeros_like(exact), torch.zeros(4, dtype=torch.float64), 0
    for block in blocks:
        of_block = slice(start, start := start + len(block.labels))
        visitor = Term(type(theirs)(*(s[of_block] for s in theirs)), worth[of_block])
        total += module.embedding_gradient(anchors, block, spec, own, visitor)
        sums += module.weight_sums(anchors, block, spec, own)
    torch.testing.assert_close(total, exact, rtol=1e-9, atol=1e-11)
    exact = panels.weight_sums(anchors, everybody, spec, own)
    torch.testing.assert_close(sums, exact, rtol=1e-9, atol=1e-11)


def test_an_anchor_that_is_not_finite(module):
    """Its statistics are not, and it adds nothing to sums of weights."""
    spec = PairSpec(weigh.MultiSimilarity(), mine.NoMining())
    anchors, everybody, blocks = sides()
    anchors.embeddings[5, 2] = torch.nan
    parts = [module.block_statistics(anchors, block, spec, None) for block in blocks]
    stats = type(parts[0])(*joined(parts, spec))
    assert stats.neg_sum.isnan().nonzero().tolist() == [[5]]
    term = Term(stats, torch.linspace(0.5, 2, 31, dtype=torch.float64))
    sums = sum(module.weight_sums(anchors, block, spec, term) for block in blocks)
    exact = panels.weight_sums(anchors, everybody, spec, term)
    assert exact.isfinite().all() and exact.all()
    torch.testing.assert_close(sums, exact, rtol=1e-9, atol=1e-11)


def test_blocks_that_have_to_know_of_one_another_are_left_to_others():
    for weighting, mining in (
        (weigh.MultiSimilarity(), mine.MultiSimilarityMining()),
        (weigh.NTXent(), mine.NoMining()),
        (weigh.NPair(), mine.ThresholdMining(0.6, -0.1)),
        (weigh.Triplet(), mine.NoMining()),
    ):
        assert not cuda.takes_blocks(PairSpec(weighting, mining))
