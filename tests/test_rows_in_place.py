"""The CPU kernels copy no candidates that ask for no gradient, and find what a copy would give."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ms_kernels import CrossBatchMemory, MultiSimilarityLoss, options, pair_loss
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


@pytest.mark.parametrize("backend", ["panels", "reference", "streamed"])
def test_other_backends_convert_them(backend):
    x, y, r, z = sides(20, 50, 7, torch.float32)
    r = r.bfloat16()
    rule = {"weighting": weigh.Contrastive(), "backend": backend}
    if backend == "streamed":
        rule = {"weighting": OwnRule()}
    got, want = (pair_loss(x, y, c, z, **rule) for c in (r, r.float()))
    assert torch.equal(got, want)


def test_which_dtypes_do_not_go_together():
    x, y, r, z = sides(20, 50, 7, torch.float32)
    for given in (r.double(), r.half().requires_grad_()):
        with pytest.raises(TypeError, match="ref_emb: expected dtype torch.float32"):
            pair_loss(x, y, given, z, weighting=weigh.Contrastive())


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_memory_is_read_in_place(dtype, monkeypatch):
    memory = CrossBatchMemory(MultiSimilarityLoss(), embedding_dim=128, size=65536, dtype=dtype)
    rows, labels = torch.randn(65536, 128), torch.randint(0, 99, (65536,))
    memory.enqueue(rows, labels)
    x = torch.randn(32, 128, requires_grad=True)
    monkeypatch.setattr(options, "workspace_bytes", 0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        memory(x, labels[:32]).backward()
    largest = max(event.cpu_memory_usage for event in seen.events())
    assert largest < 65536 * 128 * 4 / 2
