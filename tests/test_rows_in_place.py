"""The CPU kernels copy no candidates that ask for no gradient, and find what a copy would give."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import ms_kernels
from ms_kernels import (
    CrossBatchMemory,
    Histogram,
    MultiSimilarityLoss,
    NTXentLoss,
    mined_pairs,
    options,
    pair_loss,
    pair_weights,
    row_statistics,
    streamed_loss,
)
from ms_kernels.backends.cpu_call import Call, module
from ms_kernels.backends.interface import Side
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh
from ms_kernels.rules.spec import PairSpec

pytest.importorskip("ms_kernels._cpu")

RULES = {
    "multi_similarity": (weigh.MultiSimilarity(), mine.MultiSimilarityMining()),
    "contrastive": (weigh.Contrastive(), mine.NoMining()),
    "triplet": (weigh.Triplet(), mine.NoMining()),
    "circle": (weigh.Circle(), mine.NoMining()),
    "hardest": (weigh.NTXent(), mine.TopKMining(3)),
}


class OwnRule(weigh.Weighting):
    def row_loss(self, similarity, positive, negative):
        return (similarity * negative).sum(1) - (similarity * positive).sum(1)


def sides(n, m, depth, dtype):
    numbers = torch.Generator().manual_seed(n + m)
    x, r = (torch.randn(k, depth, generator=numbers).to(dtype) for k in (n, m))
    y, z = (torch.randint(0, 9, (k,), generator=numbers) for k in (n, m))
    return x, y, r, z


def gradient(x, y, r, z, rules, learns, **how):
    x, r = x.clone().requires_grad_(), r.clone().requires_grad_(learns)
    loss = pair_loss(x, y, r, z, weighting=rules[0], mining=rules[1], backend="cpu", **how)
    loss.sum().backward()
    return loss.detach(), x.grad


def equal(one, other):
    return all(
        torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("how", [{}, {"normalize": False}, {"distance": "euclidean"}], ids=str)
def test_the_bits_of_a_copy(rules, how, dtype):
    """Several blocks of rows, and a depth of more than one chunk that fills no vector."""
    for sizes in ((130, 500, 205), (300, 1100, 37), (5, 40, 1)):
        given = sides(*sizes, dtype)
        assert equal(gradient(*given, rules, True, **how), gradient(*given, rules, False, **how))


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("budget", [0, 1 << 20, 1 << 30])
def test_whatever_threads_and_memory(threads, budget, monkeypatch):
    given = sides(700, 2500, 40, torch.float32)
    want = gradient(*given, RULES["multi_similarity"], True, reduction="none")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        monkeypatch.setattr(options, "workspace_bytes", budget)
        got = gradient(*given, RULES["multi_similarity"], False, reduction="none")
    finally:
        torch.set_num_threads(before)
    assert equal(got, want)


@pytest.mark.parametrize("instructions", module().instruction_sets())
def test_whatever_instructions(instructions):
    before = module().instruction_set()
    given = sides(300, 900, 70, torch.float32)
    try:
        module().use_instruction_set(instructions)
        for how in ({}, {"distance": "squared_euclidean"}):
            rules = RULES["multi_similarity"]
            assert equal(
                gradient(*given, rules, True, **how), gradient(*given, rules, False, **how)
            )
    finally:
        module().use_instruction_set(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_are_not_finite_or_have_no_length(dtype):
    x, y, r, z = sides(70, 400, 33, dtype)
    most = torch.finfo(dtype).max
    for row in (0.0, most / 2, torch.finfo(dtype).tiny, float("inf"), float("nan")):
        for normalize in (True, False):
            r[17] = row
            given = (x, y, r, z, RULES["contrastive"])
            copied, read = (
                gradient(*given, learns, normalize=normalize) for learns in (True, False)
            )
            assert equal(copied, read)


def test_rows_that_lie_apart():
    x, y, r, z = sides(64, 300, 48, torch.float32)
    wide = torch.full((300, 96), float("nan"))
    wide[:, :48] = r
    rules = RULES["multi_similarity"]
    assert equal(gradient(x, y, r, z, rules, False), gradient(x, y, wide[:, :48], z, rules, False))


@pytest.mark.parametrize("own", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("other", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rules", ["multi_similarity", "triplet"])
def test_candidates_of_another_dtype(own, other, rules):
    x, y, r, z = sides(130, 500, 37, own)
    wide = torch.float64 if own == torch.float64 else torch.float32
    for how in ({}, {"distance": "euclidean"}, {"normalize": False, "reduction": "none"}):
        given = y, r.to(other), z, RULES[rules], False
        got = gradient(x, *given, **how)
        want = gradient(x.to(wide), y, r.to(other).to(wide), z, RULES[rules], False, **how)
        assert equal(got, [w.to(own) for w in want])


ROADS = {
    "panels": {"weighting": weigh.Contrastive(), "backend": "panels"},
    "reference": {"weighting": weigh.Contrastive(), "backend": "reference"},
    "streamed": {"weighting": OwnRule()},
    "histogram": {"weighting": Histogram()},
    "learned": {"weighting": weigh.NTXent(torch.tensor(0.1, requires_grad=True))},
}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("own", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("other", [torch.bfloat16, torch.float16, torch.float32])
def test_no_road_rounds_them(road, own, other):
    x, y, r, z = sides(20, 50, 7, torch.float32)
    x, r = x.to(own), r.to(other)
    wide = torch.float64 if own == torch.float64 else torch.float32
    for how in ({}, {"normalize": False}):
        got = pair_loss(x, y, r, z, **ROADS[road], **how)
        want = pair_loss(x.to(wide), y, r.to(wide), z, **ROADS[road], **how)
        assert torch.equal(got, want.to(own))


def test_functions_beside_the_loss_take_them():
    x, y, r, z = sides(20, 50, 7, torch.bfloat16)
    r = r.float() + 1e-4
    rules = {"weighting": weigh.MultiSimilarity(), "mining": mine.MultiSimilarityMining()}
    for get in (
        lambda x: row_statistics(x, y, r, z).neg_sum,
        lambda x: torch.cat(mined_pairs(x, y, r, z)),
        lambda x: pair_weights(ms_kernels.PairLoss(**rules), x, y, r, z).weight,
        lambda x: streamed_loss(lambda s, p, n: s.sum(1), x, y, r, z, reduction="none").float(),
    ):
        torch.testing.assert_close(get(x), get(x.float()), rtol=1e-2, atol=0)


def test_which_dtypes_do_not_go_together():
    x, y, r, z = sides(20, 50, 7, torch.float32)
    for given in (r.double(), r.half().requires_grad_()):
        with pytest.raises(TypeError, match="ref_emb: expected dtype torch.float32"):
            pair_loss(x, y, given, z, weighting=weigh.Contrastive())


def test_a_gradient_without_elements():
    """Its address is null when the call runs, and was not when the workspace was cut."""
    for n, m, depth in ((50, 0, 8), (700, 0, 8), (20, 5000, 0), (700, 50, 0), (5, 7, 0)):
        x, y, r, z = sides(n, m, depth, torch.float32)
        for reduction in ("mean", "sum"):
            given = x, y, r, z, RULES["contrastive"]
            both = [gradient(*given, learns, reduction=reduction) for learns in (True, False)]
            assert equal(*both)


def test_what_was_accepted_before_is_looked_at_again():
    """Candidates of another dtype that ask for a gradient, after some that did not."""
    x, y, r, z = sides(20, 50, 7, torch.float64)
    x.requires_grad_()
    learns = r.float().requires_grad_()
    for reduction in ("mean", "none"):
        how = {"weighting": weigh.Contrastive(), "reduction": reduction}
        want = pair_loss(x, y, r.float(), z, **how)
        with pytest.raises(TypeError, match="or ref_emb.detach"):
            pair_loss(x, y, learns, z, **how)
        with torch.no_grad():
            assert torch.equal(pair_loss(x, y, learns, z, **how), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_memory_of_float64_takes_any_batch(dtype):
    memory = CrossBatchMemory(MultiSimilarityLoss(), 8, 25, dtype=torch.float64)
    x = torch.randn(20, 8, dtype=dtype, requires_grad=True)
    memory(x, torch.arange(20) % 4).backward()
    assert x.grad.any()


def test_large_candidates_of_a_half_batch():
    x, y, r, z = sides(20, 50, 7, torch.float16)
    r = r.float() * 1e6
    for rules in ({"weighting": weigh.SupCon()}, {"weighting": OwnRule()}):
        want = pair_loss(x.float(), y, r, z, **rules)
        torch.testing.assert_close(pair_loss(x, y, r, z, **rules), want.half())


def workspace(m, need_dr=False):
    """Bytes that a call asks for, no tile kept."""
    rows, columns = (
        Side(torch.zeros(k, 128), torch.zeros(k, dtype=torch.int64), None) for k in (64, m)
    )
    call = Call("loss_and_gradient", rows, columns, PairSpec(weigh.MultiSimilarity()))
    return call.plan(1.0, True, need_dr).workspace_bytes


def test_candidates_take_a_few_numbers_each(monkeypatch):
    monkeypatch.setattr(options, "workspace_bytes", 0)
    of_each = (workspace(65536) - workspace(32768)) / 32768
    copied = (workspace(65536, need_dr=True) - workspace(32768, need_dr=True)) / 32768
    assert of_each < 112
    assert copied > of_each + 128 * 4


LOSSES = {
    "numbers": MultiSimilarityLoss,
    "alpha": lambda: MultiSimilarityLoss(alpha=torch.nn.Parameter(torch.tensor(2.0))),
    "temperature": lambda: NTXentLoss(torch.nn.Parameter(torch.tensor(0.1))),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_memory_is_read_in_place(loss, dtype, monkeypatch):
    memory = CrossBatchMemory(LOSSES[loss](), embedding_dim=128, size=65536, dtype=dtype)
    rows, labels = torch.randn(65536, 128), torch.randint(0, 99, (65536,))
    memory.enqueue(rows, labels)
    x = torch.randn(32, 128, requires_grad=True)
    monkeypatch.setattr(options, "workspace_bytes", 0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        memory(x, labels[:32]).backward()
    largest = max(event.cpu_memory_usage for event in seen.events())
    assert largest < 65536 * 128 * 4 / 2


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_of_a_memory_is_one_graph(loss):
    torch._dynamo.reset()
    memory = CrossBatchMemory(LOSSES[loss](), embedding_dim=8, size=64)
    memory.enqueue(torch.randn(64, 8), torch.arange(64) % 5)
    x, y = torch.randn(16, 8, requires_grad=True), torch.arange(16) % 5

    def step(x, y):
        return memory(x, y)

    state = {k: v.clone() for k, v in memory.state_dict().items()}
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(x, y)
    memory.load_state_dict(state)
    torch.testing.assert_close(got, step(x, y))
    got.backward()
