"""The Triton kernels: on a GPU if there is one, else in Triton's interpreter.

The interpreter takes seconds a call, so shapes are few and chosen: one row, a prime, ragged and
aligned sizes, one tile and several, a depth that a program holds whole and one that it does not.
"""

import pytest
import rounding
import tf32
import torch
from cases import (
    SPECS,
    Batch,
    assert_within_budget,
    case_id,
    deeper_than_held_whole,
    make_batch,
)
from judge import floors_of, gradients
from torch import library

import ms_kernels
from ms_kernels import multi_similarity_loss, options, reference

pytest.importorskip("triton")
if "triton" not in ms_kernels.backends.dispatch.built():
    pytest.skip(ms_kernels.backends()["triton"].note, allow_module_level=True)

from ms_kernels.backends import triton as backend  # noqa: E402
from ms_kernels.backends.interface import Side  # noqa: E402
from ms_kernels.backends.triton import launch_negatives, launch_step  # noqa: E402
from ms_kernels.backends.triton.tiles import interpreted  # noqa: E402

DEVICE = "cpu" if interpreted() else "cuda"
HALF = [torch.bfloat16, torch.float16]

# (N, M or None, D), spec, dtype. Tiles of the interpreter are 32 x 64 pairs, 16 to 32 deep.
CASES = [
    ((1, None, 3), "default", torch.float32),
    ((37, None, 16), "default", torch.float32),
    ((97, None, 5), "sharp", torch.float32),
    ((97, None, 64), "default", torch.float32),
    ((64, None, 100), "default", torch.float32),
    ((70, None, 33), "unmined", torch.float32),
    ((97, None, 20), "sharp", torch.float32),
    ((70, None, 33), "raw", torch.float32),
    ((70, None, 33), "capped", torch.float32),
    ((97, None, 20), "default", torch.float64),
    ((40, None, 70), "sharp", torch.float64),
    *[((97, None, 20), "default", dtype) for dtype in HALF],
    *[((40, None, 70), "unmined", dtype) for dtype in HALF],
    ((60, 40, 17), "default", torch.float32),
    ((37, 130, 70), "unmined", torch.float16),
    ((60, 40, 17), "raw", torch.float64),
    ((1, 40, 5), "sharp", torch.float32),
]


@pytest.fixture(autouse=True)
def restore_precision():
    yield
    torch.set_float32_matmul_precision("highest")


def name_of(value):
    if isinstance(value, tuple):
        return "_".join(f"{k}{v}" for k, v in zip("NMD", value, strict=True) if v is not None)
    return case_id(value)


@pytest.mark.parametrize(("shape", "name", "dtype"), CASES, ids=name_of)
def test_statistics(shape, name, dtype):
    spec = SPECS[name]
    x, y, r, z = make_batch(*shape, spec, dtype).to(DEVICE)
    wide = None if r is None else r.double()
    exact = reference.row_statistics(x.double(), y, wide, z, **vars(spec))
    dense = [None] * 4
    if not interpreted():
        dense = reference.row_statistics(x, y, r, z, **vars(spec))
    got = ms_kernels.row_statistics(x, y, r, z, backend="triton", **vars(spec))
    floors = rounding.of_spec(Batch(x, y, r, z), spec).statistics(exact)
    for k, floor in enumerate(floors):
        assert_within_budget(got[k], dense[k], exact[k], floor)
    assert torch.equal(got.pos_kept, exact.pos_kept)
    assert torch.equal(got.neg_kept, exact.neg_kept)


# In the interpreter the two in turn, so that each meets rows held whole and panels, of a batch and
# of refs; both where rows are as they are.
STEPS = [
    (*case, reduction)
    for i, case in enumerate(CASES)
    for j, reduction in enumerate(("mean", "none"))
    if not interpreted() or i % 2 == j or case[1] == "raw"
]


@pytest.mark.parametrize(("shape", "name", "dtype", "reduction"), STEPS, ids=name_of)
def test_loss_and_gradient(shape, name, dtype, reduction):
    x, y, r, z = make_batch(*shape, SPECS[name], dtype).to(DEVICE)
    wide = None if r is None else r.double()
    chosen = vars(SPECS[name])
    arguments = (y, wide, z, reduction, chosen)
    exact = gradients(reference.multi_similarity_loss, x.double(), *arguments)
    same = [None] * len(exact)
    if not interpreted():
        same = gradients(reference.multi_similarity_loss, x, y, r, z, reduction, chosen)
    chosen = {**chosen, "backend": "triton"}
    got = gradients(multi_similarity_loss, x, y, r, z, reduction, chosen)
    floors = floors_of(Batch(x, y, r, z), SPECS[name], reduction, "triton")
    for g, s, e, floor in zip(got, same, exact, floors, strict=True):
        assert g.dtype == dtype
        assert_within_budget(g, s, e, floor)


@pytest.mark.parametrize("name", ["default", "unmined"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(name, reduction):
    x, y, _, _ = make_batch(7, None, 3, SPECS[name], torch.float64).to(DEVICE)
    chosen = {**vars(SPECS[name]), "backend": "triton", "reduction": reduction}
    assert torch.autograd.gradcheck(
        lambda x: multi_similarity_loss(x, y, **chosen),
        x.requires_grad_(),
        eps=1e-7,
        atol=1e-5,
        fast_mode=True,
    )


def test_gradcheck_with_refs_and_ids():
    x, y, r, z = make_batch(4, 6, 2, SPECS["unmined"], torch.float64).to(DEVICE)
    ids, ref_ids = torch.arange(4, device=DEVICE), torch.arange(8, 2, -1, device=DEVICE)

    def loss(x, r):
        return multi_similarity_loss(
            x, y, r, z, ids=ids, ref_ids=ref_ids, epsilon=None, backend="triton"
        )

    sides = x.requires_grad_(), r.requires_grad_()
    assert torch.autograd.gradcheck(loss, sides, eps=1e-7, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize(
    ("name", "dtype"), [("default", torch.bfloat16), ("unmined", torch.float16)], ids=case_id
)
def test_kept_exponentials_stay_within_the_budget(monkeypatch, name, dtype):
    """And tell which side keeps a pair: a wrong side would be far outside."""
    x, y, _, _ = make_batch(97, None, deeper_than_held_whole(DEVICE), SPECS[name], dtype).to(DEVICE)
    arguments = (y, None, None, "mean", vars(SPECS[name]))
    exact = gradients(reference.multi_similarity_loss, x.double(), *arguments)
    same = [None] if interpreted() else gradients(reference.multi_similarity_loss, x, *arguments)
    (floor,) = floors_of(Batch(x, y, None, None), SPECS[name], "mean", "triton")
    kept = []
    real = launch_negatives._stash
    monkeypatch.setattr(
        launch_negatives, "_stash", lambda *args: kept.append(real(*args)) or kept[-1]
    )
    chosen = {**vars(SPECS[name]), "backend": "triton"}
    (got,) = gradients(multi_similarity_loss, x, y, None, None, "mean", chosen)
    options.stash_bytes = 0
    (again,) = gradients(multi_similarity_loss, x, y, None, None, "mean", chosen)
    assert kept[0] is not None and kept[1] is None
    assert_within_budget(got, same[0], exact[0], floor)
    assert_within_budget(again, same[0], exact[0], floor)


def test_no_gradient_is_computed_that_nobody_wants(monkeypatch):
    x, y, r, z = make_batch(37, 20, 5, SPECS["default"], torch.float32).to(DEVICE)
    seen = []
    real = launch_step.gradient
    monkeypatch.setattr(launch_step, "gradient", lambda *args: seen.append(args[0]) or real(*args))
    spec = SPECS["default"]
    for need_dx, need_dr in ((False, False), (True, False), (False, True)):
        seen.clear()
        _, _, dx, dr = backend.loss_and_gradient(
            Side(x, y, None), Side(r, z, None), spec.spec, need_dx, need_dr
        )
        assert (dx is not None, dr is not None) == (need_dx, need_dr)
        assert len(seen) == need_dx + need_dr


def test_tf32_similarities_are_rounded_and_not_cut():
    """A bias of half an ulp a factor, -5e-4 of every similarity, is far within the spread."""
    tf32.check_similarities(tf32.statistics_by("triton", DEVICE), count=128)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("name", tf32.UNMINED)
@pytest.mark.parametrize("shape", [(37, None, 40), (30, 50, 70)], ids=case_id)
def test_tf32_is_as_accurate_as_dense_tf32(shape, name, reduction):
    tf32.check_step(shape, name, "triton", reduction, DEVICE)


def test_medium_precision_rounds_rows_to_bfloat16():
    x, y, _, _ = make_batch(37, None, 20, SPECS["unmined"], torch.float32).to(DEVICE)
    options = {"epsilon": None, "reduction": "none"}
    want = multi_similarity_loss(x.bfloat16().double(), y, backend="reference", **options)
    torch.set_float32_matmul_precision("medium")
    got = multi_similarity_loss(x, y, backend="triton", **options)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


def test_opcheck_and_compile():
    from ms_kernels.engine import ops

    x, y, _, _ = make_batch(37, None, 5, SPECS["default"], torch.float32).to(DEVICE)
    packed = SPECS["default"].spec.pack()
    library.opcheck(
        ops.loss_and_gradient,
        (x, y, None, None, None, None, True, False, packed, "triton", None),
        test_utils=("test_schema", "test_faketensor"),
    )
    torch._dynamo.reset()
    step = torch.compile(
        lambda x: multi_similarity_loss(x, y, backend="triton"),
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(step(x), multi_similarity_loss(x, y, backend="triton"))


@pytest.mark.skipif(not interpreted(), reason="a canary of the interpreter")
@pytest.mark.xfail(strict=True, reason="the interpreter multiplies the bits of bfloat16")
def test_interpreter_multiplies_bfloat16():
    """When this passes, tiles.py can drop the mode half_in_float32."""
    import triton
    import triton.language as tl

    @triton.jit
    def square(x, out):
        i = tl.arange(0, 16)
        at = i[:, None] * 16 + i[None, :]
        a = tl.load(x + at)
        tl.store(out + at, tl.dot(a, tl.trans(a)))

    x = torch.randn(16, 16).bfloat16()
    out = torch.empty(16, 16)
    square[(1,)](x, out)
    torch.testing.assert_close(out, x.float() @ x.float().T)
