"""The CUDA kernels, executed on the CPU: the tests that every backend passes, at small shapes."""

import inspect

import edge_inputs
import edges
import pytest
import torch
from cases import DTYPES, SPECS, case_id, make_batch
from host_gpu import build
from host_gpu.serve import serve
from judge import check_backward, check_forward
from op_checks import check_graph, check_ops

import ms_kernels
from ms_kernels import options

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))

# One tile, a ragged one, several with several steps of depth: a similarity of N = 5 is summed from
# parts of the depth.
BATCHES = [(2, 1), (47, 16), (5, 300), (70, 129)]
CASES = [(s, "default", d) for s in BATCHES for d in DTYPES]
CASES += [(s, "unmined", d) for s in BATCHES for d in (torch.float64, torch.float32)]
# Options that change no loop are tested at one shape, for both types that kernels compute in and
# the one whose weights are lifted into its range.
CASES += [
    ((47, 16), name, dtype)
    for name in SPECS
    for dtype in (torch.float64, torch.float32, torch.float16)
    if name not in ("default", "unmined")
]
REFS = [(s, "default") for s in ((1, 7, 3), (66, 5, 17), (30, 130, 70))] + [((66, 5, 17), "raw")]


@pytest.fixture(params=["one_launch", "small", "by_tiles"])
def backend(monkeypatch, request):
    """The cuda backend, its module replaced by the one that a CPU executes, on either path."""
    return serve(monkeypatch, build.module(), request.param)


# The tests of degenerate batches and odd inputs that take a backend, served by the fixture above.
for _name, _test in (vars(edges) | vars(edge_inputs)).items():
    if _name.startswith("test_") and "backend" in inspect.signature(_test).parameters:
        globals()[_name] = _test


# An op is the same whatever runs in it: once with each kind of sides.
@pytest.mark.parametrize(("refs", "with_ids"), [(False, False), (True, True)], ids=str)
def test_opcheck(backend, refs, with_ids):
    check_ops(backend, refs, with_ids)


@pytest.mark.parametrize(("reduction", "refs"), [("mean", False), ("none", True)], ids=str)
def test_compile_without_graph_break(backend, reduction, refs):
    check_graph(backend, reduction, refs, torch.float32)


@pytest.mark.parametrize(("shape", "name", "dtype"), CASES, ids=case_id)
def test_batch(backend, dtype, shape, name):
    n, d = shape
    batch = make_batch(n, None, d, SPECS[name], dtype)
    check_forward(batch, SPECS[name], dtype, backend)
    for reduction in ("mean", "none"):
        check_backward(batch, SPECS[name], dtype, backend, reduction)


# Rows of 16 bits differ in test_batch.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=case_id)
@pytest.mark.parametrize(("shape", "name"), REFS, ids=case_id)
def test_refs(backend, dtype, shape, name):
    batch = make_batch(*shape, SPECS[name], dtype)
    check_forward(batch, SPECS[name], dtype, backend)
    for reduction in ("sum", "none"):
        check_backward(batch, SPECS[name], dtype, backend, reduction)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", ["default", "raw"])
def test_gradcheck(backend, name, reduction):
    x, y, _, _ = make_batch(6, None, 3, SPECS[name], torch.float64)
    options = {**vars(SPECS[name]), "backend": backend, "reduction": reduction}
    assert torch.autograd.gradcheck(
        lambda x: ms_kernels.multi_similarity_loss(x, y, **options),
        x.clone().requires_grad_(),
        eps=1e-7,
        atol=1e-5,
        fast_mode=True,
    )


@pytest.mark.parametrize(("reduction", "with_ids"), [("mean", False), ("none", True)], ids=str)
def test_gradcheck_with_refs(backend, reduction, with_ids):
    x, y, r, z = make_batch(5, 7, 3, SPECS["default"], torch.float64)
    ids = {"ids": torch.arange(5), "ref_ids": torch.arange(9, 2, -1)} if with_ids else {}
    options = {"backend": backend, "reduction": reduction, **ids}
    assert torch.autograd.gradcheck(
        lambda x, r: ms_kernels.multi_similarity_loss(x, y, r, z, **options),
        (x.clone().requires_grad_(), r.clone().requires_grad_()),
        eps=1e-7,
        atol=1e-5,
        fast_mode=True,
    )


def everything(batch, backend):
    x, y, r, z = batch
    leaves = [v.clone().requires_grad_() for v in (x, r) if v is not None]
    refs = [] if r is None else [leaves[1], z]
    found = list(ms_kernels.row_statistics(x, y, r, z, backend=backend))
    for reduction in ("sum", "none"):
        loss = ms_kernels.multi_similarity_loss(
            leaves[0], y, *refs, reduction=reduction, backend=backend
        )
        found += [loss, *torch.autograd.grad(loss.sum(), leaves)]
    return found


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *[((130, None, 33), dtype) for dtype in (torch.float64, torch.bfloat16)],
        *[((70, 130, 70), dtype) for dtype in (torch.float32, torch.float16)],
    ],
    ids=case_id,
)
def test_bits_do_not_depend_on_memory_or_order(backend, shape, dtype, monkeypatch):
    """Panels of one tile against the whole batch at once; threads visited the other way round."""
    batch = make_batch(*shape, SPECS["default"], dtype)
    want = everything(batch, backend)
    monkeypatch.setattr(options, "_workspace_bytes", 0)
    monkeypatch.setenv("HOST_GPU_BACKWARDS", "1")
    got = everything(batch, backend)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


def test_a_backward_pass_takes_the_products_of_its_forward_pass(backend):
    """Else pairs at their threshold would be kept by the statistics and not by the weights."""
    x, y, _, _ = make_batch(70, None, 40, SPECS["unmined"], torch.float32)
    before = torch.get_float32_matmul_precision()

    def gradient(forward, backward):
        leaf = x.clone().requires_grad_()
        torch.set_float32_matmul_precision(forward)
        loss = ms_kernels.multi_similarity_loss(leaf, y, reduction="none", backend=backend)
        torch.set_float32_matmul_precision(backward)
        loss.sum().backward()
        assert torch.get_float32_matmul_precision() == backward
        return leaf.grad

    try:
        found = [gradient("high", "high"), gradient("high", "highest"), gradient("highest", "high")]
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
