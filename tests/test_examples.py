"""What README shows runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
ARGUMENTS = {"ablation_digits": ["--quick"]}


# The other one is run by the test of two processes.
ALONE = sorted(set((ROOT / "examples").glob("[!_]*.py")) - {ROOT / "examples/train_distributed.py"})


@pytest.mark.parametrize("path", ALONE, ids=lambda p: p.stem)
def test_example(path):
    # Without Triton's interpreter, which would take a minute for gradcheck.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if path.stem == "ablation_digits":
        pytest.importorskip("sklearn")
    command = [sys.executable, "-W", "error", path, *ARGUMENTS.get(path.stem, [])]
    shown = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stdout
    losses = [float(value) for value in re.findall(r"loss (\d+\.\d+)", shown)]
    if path.stem == "ablation_digits":
        rows = re.findall(r"([SNP+]+) +(\d+\.\d+) ± \d+\.\d+", shown)
        assert [name for name, _ in rows] == ["S", "N", "P", "S+N", "S+P", "N+P", "S+N+P"]
        assert all(20 < float(recall) < 100 for _, recall in rows)
    elif losses:
        assert losses[-1] < losses[0]
    else:
        assert shown.count("gradient equals finite differences") >= 2


def test_two_processes_train_as_one():
    pytest.importorskip("sklearn")
    path = ROOT / "examples" / "train_distributed.py"
    several = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", path]
    shown = [
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for command in ([sys.executable, "-W", "error", path], several)
    ]
    losses = [[float(value) for value in re.findall(r"loss (\d+\.\d+)", one)] for one in shown]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], abs=2e-4)


def test_readme_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    use, drop_in, statistics, memory, family, learns, logarithm, own, weights, check = blocks
    scope = {}
    exec(use, scope)
    exec("import ms_kernels\n" + drop_in, scope)
    assert scope["loss"] == scope["multi_similarity_loss"](scope["embeddings"], scope["labels"])
    exec(statistics, scope)
    assert scope["criterion"].statistics.active.shape == (512,)
    exec(memory, scope)
    assert len(scope["memory"]) == 512
    exec(family, scope)
    assert scope["loss"].isfinite() and scope["loss"].requires_grad
    before = scope["embeddings"].detach().clone()
    exec(learns, scope)
    assert scope["learns"].temperature != 0.1 and (scope["embeddings"] != before).any()
    exec(logarithm, scope)
    assert torch.autograd.grad(scope["loss"], scope["log_temperature"])[0] != 0
    exec(own, scope)
    built_in = scope["multi_similarity_loss"](scope["embeddings"], scope["labels"])
    torch.testing.assert_close(scope["loss"], built_in)
    exec(weights, scope)
    assert scope["found"].weight.shape == (2, 512)
    exec(check, scope)


def test_code_of_the_page_on_scaling_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "scaling.md").read_text(), re.S)
    memory, another_encoder, several = blocks
    scope = {}
    exec(memory, scope)
    assert len(scope["memory"]) == 0 and scope["embeddings"].grad is not None  # it warms up
    exec(another_encoder, scope)
    assert len(scope["queue"]) == 128
    scope["embeddings"].grad = None
    exec(several, scope)
    want = scope["MultiSimilarityLoss"]()(scope["embeddings"], scope["labels"])
    assert torch.equal(scope["loss"], want) and scope["embeddings"].grad is not None


def test_code_of_the_page_on_retrieval_runs(capsys):
    page = (ROOT / "docs" / "retrieval.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    scope = {}
    exec(code, scope)
    assert scope["neighbours"].shape == (250, 5)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_readme_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"`make (\w+)", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
