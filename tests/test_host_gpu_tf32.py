"""float32 products of fewer bits, by the CUDA kernels that a CPU executes."""

import shutil

import pytest
import tf32
import torch
from cases import case_id
from host_gpu import build
from host_gpu.serve import serve

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))


@pytest.fixture(params=["one_launch", "small", "by_tiles"])
def backend(monkeypatch, request):
    return serve(monkeypatch, build.module(), request.param)


def check_similarities(backend):
    tf32.check_similarities(tf32.statistics_by(backend), count=256)


def test_similarities_have_no_bias(backend):
    check_similarities(backend)


@pytest.mark.parametrize("precision", tf32.OPERANDS)
@pytest.mark.parametrize("name", tf32.UNMINED)
@pytest.mark.parametrize(
    ("shape", "reduction"), [((70, None, 129), "mean"), ((130, 70, 40), "none")], ids=case_id
)
def test_errors_stay_within_the_budget(backend, shape, name, reduction, precision):
    tf32.check_step(shape, name, backend, reduction, precision=precision)


def test_highest_precision_is_not_of_fewer_bits(backend):
    x, r = tf32.pairs(64, 128)
    errors = tf32.similarity_errors(tf32.statistics_by(backend), x, r)
    assert torch.get_float32_matmul_precision() == "highest"
    assert errors.abs().max() < 2.0**-22


@pytest.mark.slow
def test_operands_that_are_cut_show(monkeypatch, tmp_path):
    csrc = tmp_path / "csrc"
    shutil.copytree(build.CSRC, csrc)
    product = csrc / "cuda" / "core" / "product.cuh"
    source, right = product.read_text(), "high = round_to_tf32(x);"
    assert source.count(right) == 1
    product.write_text(source.replace(right, "high = split ? round_to_tf32(x) : x;"))
    backend = serve(monkeypatch, build.module(csrc, ("batch_tf32",)), "one_launch")
    with pytest.raises(AssertionError, match="exceeds .*, that of chance"):
        check_similarities(backend)
