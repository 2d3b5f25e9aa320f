"""Statistics of candidates that come in blocks: joined they are those of all at once."""

import learned_options
import pytest
import torch
from blocks import assert_joined, blocks, sides
from family import MININGS, WEIGHTINGS, name_of

from ms_kernels.backends import cpu, dispatch, panels
from ms_kernels.backends.interface import Known, Side, Term
from ms_kernels.rules import mining as mine
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import MultiSimilarity, Triplet

JOINED = [rule for rule in WEIGHTINGS if not isinstance(rule, Triplet)]


@pytest.fixture(params=["cpu", "panels"])
def module(request):
    if request.param not in dispatch.built():
        pytest.skip("the compiled module is not here")
    return dispatch.MODULES[request.param]


@pytest.mark.parametrize("mining", MININGS, ids=name_of)
@pytest.mark.parametrize("weighting", JOINED, ids=name_of)
def test_joined_they_are_those_of_all(module, weighting, mining):
    spec = PairSpec(weighting, mining, max_positive_similarity=0.8)
    if module is cpu and not cpu.takes_blocks(spec):
        assert isinstance(mining, mine.TopKMining)
        return
    assert_joined(module, *sides(), spec)


@pytest.mark.parametrize("classes", [1, 17, 40])
def test_anchors_with_one_kind_of_pair(module, classes):
    """A block has neither kind of some anchors, and of one class or of 40 there is one at all."""
    for mining in (mine.MultiSimilarityMining(), mine.HardestMining(), mine.SemiHardMining()):
        assert_joined(module, *sides(classes=classes), PairSpec(MultiSimilarity(), mining))


def test_many_tiles(module):
    """The hardest pair of an anchor may lie in any tile of any block."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(300, 16, generator=generator, dtype=torch.float64)
    labels, ids = torch.arange(300) % 37, torch.arange(300)
    spec = PairSpec(MultiSimilarity(), mine.HardestMining())
    anchors = Side(x[:150], labels[:150], ids[:150])
    assert_joined(module, anchors, Side(x, labels, ids), spec)


def test_panels_of_one_row(monkeypatch):
    monkeypatch.setattr(panels, "Sides", OfOneRow)
    for mining in (mine.MultiSimilarityMining(), mine.TopKMining(3)):
        assert_joined(panels, *sides(), PairSpec(MultiSimilarity(), mining))


class OfOneRow(panels.Sides):
    def height(self, arrays):
        return 1


LEARN = [(rule, options) for rule, options in learned_options.OPTIONS if rule is not Triplet]


@pytest.mark.parametrize(
    ("rule", "options"), LEARN, ids=lambda given: getattr(given, "__name__", "")
)
def test_weight_sums(module, rule, options):
    """Of blocks they add up to those of all, which the kernels that learn have; an anchor that is
    not finite adds nothing."""
    spec = PairSpec(rule(**options), mine.MultiSimilarityMining(0.2))
    anchors, candidates = sides()
    anchors = anchors._replace(embeddings=anchors.embeddings.clone())
    anchors.embeddings[5, 0] = torch.nan
    stats = module.row_statistics(anchors, candidates, spec)
    term = Term(stats, torch.linspace(0.5, 2, len(anchors.labels), dtype=torch.float64))
    found = [module.weight_sums(anchors, block, spec, term) for block in blocks(candidates)]
    values = torch.tensor(list(options.values()), dtype=torch.float64)
    want = cpu.learned_gradient(anchors, candidates, spec, values, term, False, False)[2]
    known = sum(found)
    assert known.isfinite().all() and known.abs().max() > 0
    torch.testing.assert_close(known, want, rtol=1e-9, atol=1e-11)


def test_no_anchors(module):
    _, candidates = sides()
    nobody = Side(*(part[:0] for part in candidates))
    spec = PairSpec(MultiSimilarity(), mine.MultiSimilarityMining())
    least, most = module.hardest_of_block(nobody, candidates, spec)
    assert least.shape == (0,) and most.shape == (0, 1)
    found = module.block_statistics(nobody, candidates, spec, Known(least, most[:, 0]))
    assert all(numbers.shape == (0,) for numbers in found)


def test_what_is_known_fits_the_anchors():
    pytest.importorskip("ms_kernels._cpu")
    anchors, candidates = sides()
    known = Known(torch.zeros(17).double(), torch.zeros(16).double())
    wanted = r"known, hardest_negative: expected shape \(17,\) on cpu, got \(16,\)"
    with pytest.raises(ValueError, match=wanted):
        cpu.block_statistics(anchors, candidates, PairSpec(), known)


def test_who_takes_blocks():
    spec, lists = PairSpec(), PairSpec(MultiSimilarity(), mine.TopKMining(3))
    apart = PairSpec(MultiSimilarity(), mine.NoMining())
    for rules, wanted in (
        (spec, ["cpu", "panels", "triton"]),
        (apart, ["cpu", "cuda", "panels", "triton"]),
    ):
        names = [name for name in dispatch.MODULES if dispatch.takes_blocks(name, rules)]
        assert sorted(names) == wanted
    assert not dispatch.takes_blocks("reference", spec)
    assert dispatch.resolve_blocks("auto", "cpu", 40, lists, torch.float32) == "panels"
    with pytest.raises(ValueError, match="backend: 'cpu' takes no blocks .*TopKMining"):
        dispatch.resolve_blocks("cpu", "cpu", 40, lists, torch.float32)
