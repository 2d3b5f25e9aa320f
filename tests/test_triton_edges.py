"""What is rare in the Triton kernels' input: one class, no class, ties, ids, what is not finite.

On a GPU if there is one, else in Triton's interpreter.
"""

import pytest
import torch
from cases import SPECS, make_batch

import ms_kernels
from ms_kernels import multi_similarity_loss

pytest.importorskip("triton")
if "triton" not in ms_kernels.backends.dispatch.built():
    pytest.skip(ms_kernels.backends()["triton"].note, allow_module_level=True)

from ms_kernels.backends.triton.tiles import interpreted  # noqa: E402

DEVICE = "cpu" if interpreted() else "cuda"


def same_as_reference(x, y, *refs, **chosen):
    """Losses and gradients of float64 rows, compared with the dense ones."""
    found = []
    for name in ("triton", "reference"):
        leaves = [v.detach().clone().requires_grad_() for v in (x, *refs[:1])]
        loss = multi_similarity_loss(
            leaves[0], y, *leaves[1:], *refs[1:], reduction="none", backend=name, **chosen
        )
        loss.sum().backward()
        total = multi_similarity_loss(x, y, *refs, reduction="sum", backend=name, **chosen)
        found.append([loss.detach(), total, *(v.grad for v in leaves)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12, equal_nan=True)
    return found[0]


def rows(n, d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(DEVICE)


@pytest.mark.parametrize(
    "labels",
    [[0] * 40, list(range(40)), [0, 0, 1], [2**63 - 1, -(2**63), -1] * 12, []],
    ids=["one_class", "no_positives", "tiny", "ends_of_int64", "empty"],
)
def test_degenerate_batches(labels):
    y = torch.tensor(labels, dtype=torch.int64, device=DEVICE)
    same_as_reference(rows(len(y)), y)
    same_as_reference(rows(len(y)), y, epsilon=None)


def test_ids_in_self_mode_and_with_refs():
    y = torch.arange(30, device=DEVICE) % 5
    ids = torch.arange(30, device=DEVICE) // 2
    same_as_reference(rows(30), y, ids=ids)
    same_as_reference(rows(30), y, rows(20, seed=1), y[:20], ids=ids, ref_ids=ids[:20])


def test_strided_labels_with_refs():
    wide = torch.stack([torch.arange(30) % 5, torch.arange(30)], 1).to(DEVICE)
    same_as_reference(rows(30), wide[:, 0], rows(20, seed=1), wide[:20, 0])


def test_a_hardest_negative_just_at_the_threshold_is_not_passed_over():
    """Rounded, (hp - epsilon) + epsilon may exceed hp: a positive is kept without a negative."""
    found = 0
    for hp in torch.randn(500, generator=torch.Generator().manual_seed(0)).tolist():
        hp = float(torch.tensor(hp))
        low = torch.tensor(hp) - torch.tensor(0.1)
        if float(low + torch.tensor(0.1)) <= hp or found == 3:
            continue
        found += 1
        # One anchor: no other may open its tile.
        x = torch.tensor([[1.0, 0.0]], device=DEVICE)
        r = torch.tensor([[hp, 0.0], [float(low), 0.0]], device=DEVICE)
        y, z = torch.tensor([0], device=DEVICE), torch.tensor([0, 1], device=DEVICE)
        spec = {"normalize": False, "reduction": "none"}
        want = multi_similarity_loss(x, y, r, z, backend="reference", **spec)
        leaf = x.requires_grad_()
        spec["reduction"] = "sum"
        got = multi_similarity_loss(leaf, y, r, z, backend="triton", **spec)
        torch.testing.assert_close(got.detach(), want.sum())
    assert found == 3


def test_no_candidates():
    y = torch.arange(5, device=DEVICE)
    same_as_reference(rows(5), y, rows(0), y[:0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["batch", "anchor", "candidate"])
def test_what_is_not_finite_shows(value, where):
    x, r = rows(20), rows(12, seed=1)
    y, z = torch.arange(20, device=DEVICE) % 4, torch.arange(12, device=DEVICE) % 4
    (r if where == "candidate" else x)[3, 1] = value
    refs = () if where == "batch" else (r, z)
    loss, _, dx, *_ = same_as_reference(x, y, *refs)
    assert loss.isnan().all() if where != "anchor" else loss.isnan().sum() == 1
    assert dx.isnan().any()


def test_a_huge_epsilon_still_mines():
    x, y = rows(20).float(), torch.arange(20, device=DEVICE)
    assert multi_similarity_loss(x, y, epsilon=1e39, backend="triton") == 0
    assert multi_similarity_loss(x, y, epsilon=None, backend="triton") > 0


def test_products_that_overflow_make_the_loss_nan():
    x = rows(40).float()
    x[3] *= 1e25
    x[7] = x[3]
    y = torch.arange(40, device=DEVICE) % 6
    for spec in ({"normalize": False}, {"normalize": False, "epsilon": None}):
        got = multi_similarity_loss(x, y, reduction="none", backend="triton", **spec)
        assert got[3].isnan() and got[7].isnan()


def test_huge_tiny_and_zero_rows_keep_their_direction():
    x = rows(33).float()
    x[1] *= 1e30
    x[2] *= 1e-30
    x[3] = 0
    x[4] *= 1e-13 / x[4].norm()
    y = torch.arange(33, device=DEVICE) % 5
    want = multi_similarity_loss(x.double(), y, reduction="none", backend="reference")
    got = multi_similarity_loss(x, y, reduction="none", backend="triton")
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


def test_mining_is_strict():
    """Similarities are 0 or 1 exactly: a pair that equals its threshold is not kept."""
    x, y = torch.eye(4, device=DEVICE)[[0, 1, 2, 0]], torch.tensor([0, 0, 1, 1], device=DEVICE)
    stats = ms_kernels.row_statistics(x, y, epsilon=0.0, backend="triton")
    assert stats.pos_kept.tolist() == stats.neg_kept.tolist() == [1, 0, 0, 1]
    unmined = dict(epsilon=None, backend="triton")
    stats = ms_kernels.row_statistics(x, y, max_positive_similarity=0.0, **unmined)
    assert not stats.pos_kept.any()
    stats = ms_kernels.row_statistics(x, y % 1, max_positive_similarity=1.0, **unmined)
    assert stats.pos_kept.tolist() == [2, 3, 3, 2]


def test_options_keep_every_bit_of_float64():
    """Exact ties of S with a limit, and options beyond the range of float32."""
    y = torch.tensor([0, 0, 0, 1], device=DEVICE)
    x = torch.tensor([[1.0], [0.7], [0.35], [-1.0]], dtype=torch.float64, device=DEVICE)
    raw = {"normalize": False}
    same_as_reference(x, y, max_positive_similarity=0.7, epsilon=None, **raw)
    x = torch.tensor([[1.0], [1.0], [1 - 0.7], [0.2]], dtype=torch.float64, device=DEVICE)
    y = torch.tensor([0, 0, 1, 2], device=DEVICE)
    same_as_reference(x, y, epsilon=0.7, beta=3.0, **raw)
    x, y = rows(8, 3), torch.arange(8, device=DEVICE) % 3
    for far in ({"alpha": 1e30}, {"beta": 1e30}, {"alpha": 1e-30}, {"base": -1e-50}):
        same_as_reference(x, y, **far)
    same_as_reference(x, y * 0, epsilon=1e39)


@pytest.mark.parametrize(
    ("largest", "refs"), [(float("nan"), True), (float("inf"), True), (1e12, True), (1e12, False)]
)
def test_one_large_incoming_gradient_leaves_other_rows_alone(largest, refs):
    """float16 weights would overflow, or vanish beside it."""
    x, y, r, z = make_batch(40, 50, 7, SPECS["default"], torch.float16).to(DEVICE)
    y, z = y % 4, z % 4
    dloss = torch.ones(40, device=DEVICE)
    dloss[7] = largest
    found = {}
    for name, dtype in (("triton", torch.float16), ("reference", torch.float64)):
        leaf = x.detach().to(dtype, copy=True).requires_grad_()
        sides = (r.to(dtype), z) if refs else ()
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=name == "triton"):
            loss = multi_similarity_loss(leaf, y, *sides, reduction="none", backend=name)
        assert loss.dtype == (torch.float32 if name == "triton" else torch.float64)
        loss.backward(dloss.to(loss.dtype))
        found[name] = leaf.grad.double()
    # What a row of float16 can hold: with refs all but the row itself.
    fits = found["reference"].abs().amax(1) < 6e4
    assert fits.sum() == 39 if refs else fits.sum() > 0
    got, want = found["triton"][fits], found["reference"][fits]
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-3 * float(want.abs().max()))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_precision_of_products_may_have_its_newer_name(reduction):
    """torch.get_float32_matmul_precision() raises then."""
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has the earlier name only")
    x, y, *_ = make_batch(40, None, 20, SPECS["default"], torch.float32).to(DEVICE)

    def step(x):
        leaf = x.clone().requires_grad_()
        loss = multi_similarity_loss(leaf, y, reduction=reduction, backend="triton")
        return loss.detach(), *torch.autograd.grad(loss.sum(), leaf)

    half = step(x.bfloat16())
    torch.set_float32_matmul_precision("high")
    want = step(x)
    torch.set_float32_matmul_precision("highest")
    exact = step(x)
    try:
        matmul.fp32_precision = "tf32"
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
        assert all(map(torch.equal, step(x), want)) and not torch.equal(want[1], exact[1])
        assert all(map(torch.equal, step(x.bfloat16()), half))
        matmul.fp32_precision = "ieee"
        assert all(map(torch.equal, step(x), exact))
    finally:
        torch.set_float32_matmul_precision("highest")
