"""Which backend runs, and what an installation says of itself."""

import inspect
import itertools
import subprocess
import sys

import pytest
import torch

import ms_kernels
from ms_kernels import Circle, NoMining, NTXent, PairSpec, Triplet, __main__, pair_loss
from ms_kernels.backends import cpu, cuda, dispatch, triton
from ms_kernels.backends.interface import Crowd


def test_auto_takes_the_fastest_that_serves_the_device():
    assert dispatch.choose("cpu", frozenset({"cpu", "panels"})) == "cpu"
    assert dispatch.choose("cpu", frozenset({"panels"})) == "panels"
    assert dispatch.choose("cuda", frozenset({"cpu", "panels"})) == "panels"
    assert dispatch.choose("cuda", frozenset({"cpu", "triton", "panels"})) == "triton"
    assert dispatch.choose("cpu", frozenset({"triton", "panels"})) == "panels"
    assert dispatch.choose("cpu", frozenset()) == "reference"


def test_small_batches_take_the_single_launch():
    everything = frozenset({"cuda", "triton", "cpu", "panels"})
    assert dispatch.choose("cuda", everything, 1024) == "cuda"
    assert dispatch.choose("cuda", everything, 1025) == "triton"
    assert dispatch.choose("cuda", everything - {"triton"}, 10**6) == "cuda"
    large = "cuda", everything, 10**6
    assert dispatch.choose(*large, PairSpec(), torch.float32) == "cuda"
    assert dispatch.choose(*large, PairSpec(), torch.bfloat16) == "triton"
    assert dispatch.choose(*large, PairSpec(NTXent()), torch.float32) == "triton"
    torch.set_float32_matmul_precision("high")
    try:
        assert dispatch.choose(*large, PairSpec(), torch.float32) == "triton"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert dispatch.choose("cpu", everything) == "cpu"


def test_triton_takes_distances_of_small_batches():
    near = PairSpec(distance="euclidean")
    both = frozenset(("cuda", "triton", "panels"))
    assert dispatch.choose("cuda", both, 64) == "cuda"
    assert dispatch.choose("cuda", both, 64, near) == "triton"
    assert dispatch.choose("cuda", both - {"triton"}, 64, near) == "cuda"


def test_an_explicit_backend_never_falls_back(monkeypatch):
    monkeypatch.setattr(dispatch, "why_missing", lambda name: "no compiler was there")
    x, y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="'cpu' cannot be used here: no compiler was there; or"):
        ms_kernels.multi_similarity_loss(x, y, backend="cpu")


def test_a_backend_is_asked_of_rules_and_dtype_at_once(monkeypatch):
    """One that takes both for themselves may refuse one with the other."""
    pytest.importorskip("ms_kernels._cpu")
    real = cpu.refuses

    def refuses(spec, dtype):
        both = isinstance(spec.weighting, NTXent) and dtype == torch.bfloat16
        return "no NTXent of bfloat16" if both else real(spec, dtype)

    monkeypatch.setattr(cpu, "refuses", refuses)
    dispatch.forget()
    rules = PairSpec(NTXent())
    assert dispatch.resolve("auto", "cpu", 4, rules, torch.float32) == "cpu"
    assert dispatch.resolve("auto", "cpu", 4, PairSpec(), torch.bfloat16) == "cpu"
    assert dispatch.resolve("auto", "cpu", 4, rules, torch.bfloat16) == "panels"
    x, y = torch.randn(4, 3).bfloat16(), torch.arange(4) // 2
    pair_loss(x, y, weighting=NTXent())
    with pytest.raises(ValueError, match="embeddings: backend 'cpu': no NTXent of bfloat16"):
        pair_loss(x, y, weighting=NTXent(), backend="cpu")
    dispatch.forget()


def test_a_crowd_is_judged_for_the_backend_that_would_run(monkeypatch):
    """Of the backend for so many samples, as on a GPU: here neither could run."""
    for name in ("cuda", "triton"):
        monkeypatch.setitem(dispatch.DEVICE_OF, name, "cpu")
    monkeypatch.setattr(dispatch, "built", lambda device: frozenset({"cuda", "triton", "panels"}))
    monkeypatch.setattr(cuda, "MOST_SAMPLES", 10)
    monkeypatch.setattr(cuda, "CROWD", Crowd(100, of_class=False))
    monkeypatch.setattr(triton, "CROWD", Crowd(15, of_class=False))
    x, y = torch.randn(20, 3), torch.arange(20) // 2
    want = pair_loss(x, y, weighting=Triplet(), backend="reference")
    for function in (pair_loss, torch.compile(pair_loss, fullgraph=True, backend="eager")):
        torch.testing.assert_close(function(x, y, weighting=Triplet()), want)


def test_sizes_of_a_graph_stand_for_others():
    everything = frozenset(dispatch.MODULES)
    for samples in (0, 1, 1024, 1025, 10**6):
        found = dispatch.as_many(samples)
        assert found <= samples
        for device in ("cpu", "cuda"):
            same = {dispatch.choose(device, everything, n) for n in (found, samples)}
            assert len(same) == 1


def test_options_learn_where_a_loss_of_numbers_would_go(monkeypatch):
    """By size and rules; where no faster backend is at hand, on the one that is."""
    here = {"cuda", "triton", "panels"}
    monkeypatch.setattr(dispatch, "built", lambda device: frozenset(here))
    ms, far = PairSpec(), PairSpec(distance="euclidean")
    circle, triplet = PairSpec(Circle(), NoMining()), PairSpec(Triplet(), NoMining())

    def resolved(spec, samples, dtype=torch.bfloat16, name="auto"):
        return dispatch.resolve_learned(name, "cuda", samples, spec, dtype)

    assert resolved(ms, 1024) == resolved(triplet, 1024) == "cuda"
    assert resolved(ms, 1025) == resolved(triplet, 1025) == resolved(far, 8) == "triton"
    assert resolved(ms, 10**6, torch.float32) == "cuda"  # fastest by tiles
    for spec, samples in itertools.product((ms, far, circle, triplet), (8, 1024, 1025, 10**6)):
        for dtype in (torch.float32, torch.bfloat16):
            plain = dispatch.choose("cuda", frozenset(here), samples, spec, dtype)
            assert resolved(spec, samples, dtype) == plain
    here.remove("triton")
    assert resolved(far, 10**6) == resolved(ms, 10**6) == "cuda"
    here.remove("cuda")
    assert resolved(ms, 8) is None
    assert dispatch.resolve_learned("auto", "cpu", 8, ms, torch.float32) is None


def test_backends_say_what_they_are():
    found = ms_kernels.backends()
    assert list(found) == ["cuda", "cpu", "triton", "panels", "reference"]
    assert found["panels"].available and found["reference"].available
    assert all(state.note for state in found.values())


def test_a_pure_python_checkout_works():
    script = """
import sys
import types
sys.modules["ms_kernels._cpu"] = None   # as if it had not been built
import torch, ms_kernels
state = ms_kernels.backends()["cpu"]
assert not state.available and "pip install" in state.note, state
x = torch.randn(8, 4, requires_grad=True)
ms_kernels.multi_similarity_loss(x, torch.arange(8) // 2).backward()
try:
    ms_kernels.multi_similarity_loss(x, torch.arange(8) // 2, backend="cpu")
except ValueError as error:
    assert "backend: 'cpu' cannot be used here" in str(error)
else:
    raise SystemExit("a missing backend was accepted")
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_import_loads_no_compiled_module_and_no_triton():
    script = """
import sys, ms_kernels
loaded = {"ms_kernels._cpu", "ms_kernels._cuda", "triton"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_info_names_every_backend():
    shown = subprocess.run(
        [sys.executable, "-m", "ms_kernels", "info"], check=True, capture_output=True, text=True
    ).stdout
    for word in ("ms_kernels", torch.__version__, "cpu", "panels", "reference", "threads"):
        assert word in shown


def test_unknown_command_shows_the_usage(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ms_kernels", "dance"])
    with pytest.raises(SystemExit) as refused:
        __main__.main()
    assert refused.value.code == 2 and "demo" in capsys.readouterr().err


def test_an_old_triton_is_named(monkeypatch):
    triton = pytest.importorskip("triton")
    from ms_kernels.backends import triton as backend

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton, "__version__", "3.3.0+git1")
    assert backend.missing() is None
    monkeypatch.setattr(triton, "__version__", "3.2.0")
    assert "Triton 3.3 or newer is needed, this is 3.2.0" in backend.missing()


def test_a_tape_without_its_module_is_named(monkeypatch):
    monkeypatch.setattr(triton, "missing", lambda: None)
    monkeypatch.setattr(triton.tiles, "interpreted", lambda: False)
    assert ms_kernels.backends()["triton"].note == triton.NOTE
    monkeypatch.setattr(triton.driver, "_module", lambda: None)
    assert "ms_kernels._tape is not built; reinstall" in ms_kernels.backends()["triton"].note
    monkeypatch.undo()
    dispatch.forget()


def test_float64_passes_an_old_triton_by(monkeypatch):
    """Before 3.5 it has no float64 products: auto goes on, an explicit backend says so."""
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(
        dispatch, "why_missing", lambda name: "no module" * (name == "cuda") or None
    )
    for version in ("3.5.1", "3.4.0"):
        monkeypatch.setattr(triton, "__version__", version)
        dispatch.built.cache_clear()
        dispatch.serving.cache_clear()
        assert dispatch.resolve("auto", "cuda", dtype=torch.float32) == "triton"
        if version == "3.5.1":
            assert dispatch.resolve("auto", "cuda", dtype=torch.float64) == "triton"
    dispatch._remarked.clear()
    with pytest.warns(UserWarning, match="triton: float64 needs Triton 3.5 or newer"):
        assert dispatch.resolve("auto", "cuda", dtype=torch.float64) == "panels"
    x = torch.randn(4, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="embeddings: backend 'triton': float64 needs Triton 3.5"):
        ms_kernels.multi_similarity_loss(x, torch.arange(4) // 2, backend="triton")
    dispatch.built.cache_clear()
    dispatch.serving.cache_clear()


def test_cpu_tensors_ask_nothing_of_cuda(monkeypatch):
    """A query may start CUDA, and fails in a process that was forked after it."""

    def missing(name):
        assert dispatch.DEVICE_OF[name] != "cuda"
        return None

    monkeypatch.setattr(dispatch, "why_missing", missing)
    dispatch.built.cache_clear()
    try:
        assert dispatch.resolve("auto", "cpu") == "cpu"
        assert dispatch.resolve("auto", "cpu", spec=None) == "panels"
        assert dispatch.built("cpu") == {"cpu", "panels"}
    finally:
        dispatch.built.cache_clear()


def test_cuda_tensors_by_panels_are_told_once(monkeypatch):
    reasons = {"cuda": "no module", "triton": "an old Triton", "cpu": None, "panels": None}
    monkeypatch.setattr(dispatch, "why_missing", reasons.get)
    monkeypatch.setattr(
        dispatch, "built", lambda device: frozenset(n for n, why in reasons.items() if why is None)
    )
    dispatch._remarked.clear()
    try:
        # Nothing to tell: CPU tensors, a loss that only panels knows, panels that are asked for.
        assert dispatch.resolve("auto", "cpu") == "cpu"
        assert dispatch.resolve("auto", "cuda", spec=None) == "panels"
        assert dispatch.resolve("panels", "cuda") == "panels"
        with pytest.warns(UserWarning) as told:
            for dtype in (torch.float32, torch.bfloat16, torch.float32):
                assert dispatch.resolve("auto", "cuda", 4096, dtype=dtype) == "panels"
        message = str(told[0].message)
        assert len(told) == 1 and "(cuda: no module; triton: an old Triton)" in message
        assert "backend='panels'" in message and "README" in message
        reasons["triton"] = None
        dispatch._remarked.clear()
        assert dispatch.resolve("auto", "cuda", 4096) == "triton"
    finally:
        dispatch._remarked.clear()


def test_backends_is_the_package_and_the_function():
    import ms_kernels.backends.panels as panels

    assert ms_kernels.backends.panels is panels is dispatch.MODULES["panels"]
    assert ms_kernels.backends() == dispatch.backends()
    assert "-> dict[str, " in str(inspect.signature(ms_kernels.backends))
