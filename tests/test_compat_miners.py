"""Miners against pytorch-metric-learning's: the exact pairs, how many, and when they are listed."""

import copy
import pickle

import pytest
import torch
from peer_classes import BATCHES, DTYPES, MINERS, REFS, miner_pair, ours, rows
from pytorch_metric_learning import distances, losses
from pytorch_metric_learning import miners as library
from pytorch_metric_learning.utils import loss_and_miner_utils

from ms_kernels import options
from ms_kernels.backends.plain.distance import similarities
from ms_kernels.compat.pytorch_metric_learning import miners
from ms_kernels.compat.pytorch_metric_learning.mined import MinedPairs
from ms_kernels.compat.pytorch_metric_learning.triplet_mining import symmetric

LAZY = ("multi_similarity", "pair_margin")
Y = BATCHES["any"]


def sets(pairs):
    """As pairs of indices; of triplets, triplets."""
    if len(pairs) == 3:
        return [{*zip(*(index.tolist() for index in pairs), strict=True)}]
    a, p, b, n = (index.tolist() for index in pairs)
    return [{*zip(a, p, strict=True)}, {*zip(b, n, strict=True)}]


def tensors(y, refs, dtype):
    other = (rows(len(REFS), 1).to(dtype), REFS) if refs else ()
    return rows(len(y)).to(dtype), y, *other


@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", MINERS)
def test_exact_pairs(name, batch, refs):
    """Half as of the same numbers in float64: theirs mines them in half."""
    y = BATCHES[batch]
    for dtype in DTYPES:
        mine, their = miner_pair(name)
        got = mine(*tensors(y, refs, dtype))
        if (name, batch, refs) == ("batch_hard", "empty", False):
            with pytest.raises(IndexError):  # theirs looks for the hardest of no pairs
                their(*tensors(y, refs, torch.float64))
            assert [len(index) for index in got] == [0, 0, 0]
            continue
        want = their(*tensors(y, refs, torch.promote_types(dtype, torch.float32)))
        assert len(got) == len(want) and isinstance(got, tuple)
        assert [index.dtype for index in got] == [torch.int64] * len(want)
        assert sets(got) == sets(want)
        for number in ("num_pos_pairs", "num_neg_pairs", "num_triplets"):
            assert getattr(mine, number, 0) == getattr(their, number, 0)
        assert not getattr(mine, "calls", {}).get("fallback")


@pytest.mark.parametrize("name", MINERS)
def test_references_without_labels(name):
    """They are of the batch's labels, and pairs i = i are none; but the miner of multi-similarity
    takes those for pairs of both kinds, and so it is the library's that mines them."""
    mine, their = miner_pair(name)
    x, r = rows(len(Y)), rows(len(Y), 1)
    assert sets(mine(x, Y, x)) == sets(their(x, Y, x)) == sets(their(x, Y))
    if name == "multi_similarity":
        with pytest.warns(UserWarning, match="but not both"):
            got = mine(x, Y, r)
    else:
        got = mine(x, Y, r)
    assert sets(got) == sets(their(x, Y, r)) and len(got[0])
    assert mine.calls["fallback"] == (name == "multi_similarity")


@pytest.mark.parametrize("epsilon", [0.1, -0.2, 0.0])
@pytest.mark.parametrize("distance", [None, distances.LpDistance(), distances.LpDistance(power=2)])
def test_multi_similarity_mining_in_its_order(distance, epsilon):
    """On a circle, one degree apart: pair by pair as theirs lists them, nearest or farthest first,
    but for ties."""
    angle = torch.deg2rad(torch.arange(64, dtype=torch.float64) ** 1.1)
    x = torch.stack([angle.cos(), angle.sin()], 1)
    y = torch.randint(8, (64,), generator=torch.Generator().manual_seed(3))
    given = {} if distance is None else {"distance": distance}
    pairs = miners.MultiSimilarityMiner(epsilon, **given)(x, y)
    want = library.MultiSimilarityMiner(epsilon, **given)(x, y)
    assert [len(index) for index in pairs] == [len(index) for index in want]
    assert len(want[0]) > 0
    for index, their in zip(pairs, want, strict=True):
        assert torch.equal(index, their)


@pytest.mark.parametrize("kind", ["all", "hard", "semihard", "easy"])
@pytest.mark.parametrize("distance", [distances.LpDistance(), distances.CosineSimilarity()])
@pytest.mark.parametrize("panel_bytes", [1, 1 << 24], ids=["line by line", "at once"])
def test_kinds_of_triplets(distance, kind, panel_bytes):
    options.panel_bytes = panel_bytes
    given = {"margin": 0.3, "type_of_triplets": kind, "distance": distance}
    mine, their = miners.TripletMarginMiner(**given), library.TripletMarginMiner(**given)
    got, want = (miner(*tensors(Y, True, torch.float64)) for miner in (mine, their))
    assert all(map(torch.equal, got, want)) and len(got[0]) > 0
    assert mine.num_triplets == len(want[0]) and mine.calls == {"kernels": 1}


@pytest.mark.parametrize("kind", ["all", "hard", "semihard", "easy"])
@pytest.mark.parametrize("distance", ["unit", "raw", "squared", "cosine"])
@pytest.mark.parametrize("panel_bytes", [1 << 14, 1 << 24], ids=["panels", "at once"])
def test_triplets_of_a_batch_in_their_order(distance, kind, panel_bytes):
    """Of several blocks of rows, the last of which is smaller."""
    options.panel_bytes = panel_bytes
    given = {
        "unit": distances.LpDistance(),
        "raw": distances.LpDistance(normalize_embeddings=False),
        "squared": distances.LpDistance(power=2),
        "cosine": distances.CosineSimilarity(),
    }[distance]
    x, y = rows(75, 3), torch.randint(9, (75,), generator=torch.Generator().manual_seed(1))
    x[9] = x[10]  # of which the distance is 0
    options_of = {"margin": 0.3, "type_of_triplets": kind, "distance": given}
    mine, their = miners.TripletMarginMiner(**options_of), library.TripletMarginMiner(**options_of)
    got, want = mine(x, y), their(x, y)
    assert all(map(torch.equal, got, want)) and len(got[0]) > 0


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 130])
@pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean"])
def test_a_block_that_is_mirrored_has_the_bits_of_one_that_is_computed(n, distance):
    x = torch.randn(n, 7)
    want = similarities(x, x, distance, None)
    assert torch.equal(symmetric(x, distance), want)


@pytest.mark.parametrize("name", LAZY)
def test_a_tuple_until_somebody_looks(name):
    mine, _ = miner_pair(name)
    pairs = mine(rows(len(Y)), Y)
    assert isinstance(pairs, MinedPairs) and len(pairs) == 4 and pairs._lists is None
    anchors, *rest = pairs
    assert pairs[0] is anchors and pairs[1:] == tuple(rest)
    assert all(map(torch.equal, pickle.loads(pickle.dumps(pairs)), pairs))
    assert len(pairs + (anchors,)) == 5 and ((anchors,) + pairs)[0] is anchors
    assert "Mining(" in repr(pairs)


@pytest.mark.parametrize("name", LAZY)
def test_c_code_sees_the_lists(name):
    """torch.cat looks into a tuple without asking it: samplers and proxy losses weigh with it."""
    mine, _ = miner_pair(name)
    x = rows(len(Y))
    assert torch.equal(torch.cat(mine(x, Y)), torch.cat(tuple(mine(x, Y))))
    weigh = loss_and_miner_utils.convert_to_weights
    got, want = (weigh(form(mine(x, Y)), Y, torch.float64) for form in (lambda p: p, tuple))
    assert torch.equal(got, want) and got.max() == 1
    proxies = losses.ProxyAnchorLoss(8, 6).double()
    assert torch.equal(proxies(x, Y, mine(x, Y)), proxies(x, Y, tuple(mine(x, Y))))
    taken = tuple.__getitem__(mine(x, Y), 0)
    with pytest.raises(RuntimeError, match="taken out of their tuple unseen"):
        taken + 1


def test_rows_that_were_written_into():
    x = rows(len(Y))
    pairs = miners.MultiSimilarityMiner()(x, Y)
    before = miners.MultiSimilarityMiner()(x, Y)
    listed = tuple(before)
    x += 1
    with pytest.raises(RuntimeError, match="written into"):
        ours("MultiSimilarityLoss")(x, Y, pairs)
    with pytest.raises(RuntimeError, match="written into"):
        tuple(pairs)
    assert all(map(torch.equal, tuple(before), listed))
    y = Y.clone()
    pairs = miners.MultiSimilarityMiner()(x, y)
    y += 1
    with pytest.raises(RuntimeError, match="embeddings and labels as they were"):
        tuple(pairs)


def test_rows_without_their_graph():
    """Mined of a detached tensor they are the same rows; of a copy they are not."""
    for given, road in ((rows(len(Y)).requires_grad_(), "kernels"), (None, "lists")):
        x = rows(len(Y)).requires_grad_() if given is None else given
        pairs = miners.MultiSimilarityMiner()(x.detach() if given is x else x.detach().clone(), Y)
        loss = ours("MultiSimilarityLoss")
        loss(x, Y, pairs).backward()
        assert loss.calls == {road: 1} and x.grad.any()


def test_numbers_of_the_last_call():
    mine, their = miner_pair("multi_similarity")
    assert (mine.num_pos_pairs, mine.num_neg_pairs) == (0, 0)
    for seed in (0, 1):
        x = rows(len(Y), seed)
        mine(x, Y), their(x, Y)
        counts = mine.num_pos_pairs, mine.num_neg_pairs
        assert counts == (their.num_pos_pairs, their.num_neg_pairs) and all(counts)
    assert copy.deepcopy(mine).num_pos_pairs == their.num_pos_pairs


def test_statistics_that_are_recorded():
    x = rows(len(Y))
    for name, given in (
        ("MultiSimilarityMiner", {}),
        ("BatchHardMiner", {}),
        ("BatchHardMiner", {"distance": distances.CosineSimilarity(collect_stats=True)}),
    ):
        mine = getattr(miners, name)(collect_stats=True, **given)
        their = getattr(library, name)(collect_stats=True, **copy.deepcopy(given))
        mine(x, Y), their(x, Y)
        assert mine._record_these_stats == their._record_these_stats
        for either in (mine, mine.distance):
            judge = their if either is mine else their.distance
            for stat in getattr(judge, "_record_these_stats", []):
                assert getattr(either, stat) == pytest.approx(getattr(judge, stat)), stat
        assert not mine.calls["fallback"]


def test_what_is_not_served():
    x = rows(len(Y))
    mine = miners.MultiSimilarityMiner(distance=distances.SNRDistance())
    with pytest.warns(UserWarning, match="MultiSimilarityMiner: distance=SNRDistance"):
        pairs = mine(x, Y)
    mine(x, Y)  # said once
    assert type(pairs) is tuple and mine.calls == {"fallback": 2}
    assert mine.num_pos_pairs == len(pairs[0])
    with pytest.raises(ValueError, match="PairMarginMiner.*collect_stats=True"):
        miners.PairMarginMiner(collect_stats=True, strict=True)(x, Y)
    hard = miners.BatchHardMiner(allowed_neg_range=(0, 1))
    with pytest.warns(UserWarning, match="BatchHardMiner: allowed_pos_range or"):
        hard(x, Y)
    with pytest.raises(ValueError, match="but not both"):
        miners.MultiSimilarityMiner(strict=True)(x, Y, rows(len(Y), 1), Y)


def test_other_miners_are_the_librarys_own():
    own = {"MultiSimilarityMiner", "PairMarginMiner", "BatchHardMiner", "TripletMarginMiner"}
    names = [name for name in vars(library) if name.endswith("Miner")]
    assert own < set(names)
    for name in names:
        kind, their = getattr(miners, name), getattr(library, name)
        assert (kind is not their) == (name in own) and issubclass(kind, their)
        assert kind.__name__ == name
