"""What is built or fetched beforehand for a GPU machine, and what it was made of."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_proof import carry, steps
from gpu_proof.site import Site

from bench import gpu, gpu_latency, gpu_machine, gpu_report, gpu_sources

HERE = Path(__file__).parent


def test_a_carried_module_is_placed_where_it_serves(tmp_path, capsys):
    here = carry.python_of(sys.executable)
    folder, package = tmp_path / "gpu" / here["tag"], tmp_path / "package"
    folder.mkdir(parents=True)
    package.mkdir()
    assert carry.place(tmp_path / "gpu", package) is None
    (folder / f"_cuda{here['suffix']}").write_bytes(b"module")
    manifest = {**here, "architectures": "90-real", "sources": gpu_sources.built()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert carry.place(tmp_path / "gpu", package) == f"gpu/{here['tag']}, 90-real"
    assert carry.in_package("_cuda", package).read_bytes() == b"module"
    assert carry.in_package("_cpu", package) is None
    for flaw in ({"sources": "old"}, {"suffix": ".cpython-399-x86_64-linux-gnu.so"}):
        (folder / "manifest.json").write_text(json.dumps({**manifest, **flaw}))
        assert carry.place(tmp_path / "gpu", package) is None
        assert "is not used" in capsys.readouterr().out


def test_a_module_of_other_sources_is_built_again(site, tmp_path, monkeypatch):
    """The sources were edited, the module that an earlier call put into the package is there."""
    here, package = carry.python_of(sys.executable), tmp_path / "package"
    package.mkdir()
    module = package / f"_cuda{here['suffix']}"
    module.write_bytes(b"module")
    monkeypatch.setattr(
        Site, "no_cuda_module", property(lambda _: carry.unusable("_cuda", package))
    )
    (build,) = steps.chosen(["build"])
    tests, tools = steps.chosen(["cuda", "memcheck"])
    assert build.why_not(site) is None and "nothing says" in tests.why_not(site)
    manifest = {**here, "architectures": "90-real", "sources": gpu_sources.built()}
    gpu_sources.write_note(manifest, package)
    assert "is here" in build.why_not(site) and tests.why_not(site) is None
    gpu_sources.write_note({**manifest, "sources": "old"}, package)
    assert build.why_not(site) is None
    assert "other sources (old" in tests.why_not(site) == tools.why_not(site)
    monkeypatch.setattr(gpu_machine, "cuda_module", lambda: gpu_sources.module_sources(module))
    with pytest.raises(SystemExit, match="other sources"):
        gpu_machine.record(tmp_path / "r.jsonl")
    gpu_sources.write_note(manifest, package)
    assert gpu_machine.unlike() is None
    gpu_sources.write_note({**manifest, "sources": "old"}, package)
    assert carry.place(tmp_path / "nothing carried", package) is None and not module.exists()
    module.write_bytes(b"another build's")  # the note is not its own
    assert "nothing says" in tests.why_not(site)


def test_a_failed_build_leaves_no_note(tmp_path, monkeypatch):
    (tmp_path / gpu_sources.NOTE).write_text("{}")
    module = tmp_path / f"_cuda{carry.python_of(sys.executable)['suffix']}"
    module.write_bytes(b"old")
    monkeypatch.setattr(carry, "PACKAGE", tmp_path)
    monkeypatch.setattr(carry, "build", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        carry.main(["--here"])
    assert not (tmp_path / gpu_sources.NOTE).exists() and not module.exists()


def test_the_digest_holds_all_that_is_compiled(tmp_path):
    files = ("csrc/cuda/a.cu", "cmake/cuda.cmake", "cmake/cuda/CMakeLists.txt", "CMakeLists.txt")
    files += ("cmake/build_cuda.cmake.in",)
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    seen = {gpu_sources.built(tmp_path)}
    for name in files:
        (tmp_path / name).write_text("changed")
        seen.add(gpu_sources.built(tmp_path))
    assert len(seen) == 1 + len(files)


def test_the_commit_is_known_without_a_repository(tmp_path):
    copy, carried = tmp_path / "copy", tmp_path / "gpu"
    (copy / "bench").mkdir(parents=True)
    (copy / "CMakeLists.txt").write_text("")
    asked = (copy, carried)
    assert gpu_sources.commit(*asked) == {"commit": None, "changed": None}
    (carried / "cp312").mkdir(parents=True)
    manifest = {"commit": "abc", "changed": False, "measured": gpu_sources.measured(copy)}
    (carried / "cp312" / "manifest.json").write_text(json.dumps(manifest))
    assert gpu_sources.commit(*asked) == {"commit": "abc", "changed": False}
    (copy / "bench" / "a.py").write_text("edited there")
    assert gpu_sources.commit(*asked) == {"commit": "abc", "changed": True}
    manifest |= {"changed": True, "measured": gpu_sources.measured(copy)}
    (carried / "cp312" / "manifest.json").write_text(json.dumps(manifest))
    assert gpu_sources.commit(*asked)["changed"] is True
    assert {"commit", "changed", "measured", "sources"} <= set(carry.state())
    machine = dict.fromkeys(("gpu", "driver", "cuda", "torch", "triton", "date", "sources"), "x")
    unknown = gpu_report.machine_line({**machine, "commit": None, "changed": None})
    assert "commit unknown, changed or not: unknown" in unknown


def test_a_repository_around_the_tree_is_not_its_own(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "CMakeLists.txt").write_text("")
    assert gpu_sources.commit(tmp_path / "copy", tmp_path) == {"commit": None, "changed": None}


def test_the_manifest_names_the_nvcc_that_was_used(tmp_path):
    assert carry.nvcc_of(tmp_path) is None
    (tmp_path / "cuda").mkdir()
    said = "nvcc: NVIDIA (R) Cuda compiler\nCuda compilation tools, release 13.0, V13.0.88\nBuild"
    (tmp_path / "cuda" / "tools.txt").write_text(f"/opt/my cuda/bin/nvcc {said} /usr/bin/c++  ")
    assert carry.nvcc_of(tmp_path).startswith("/opt/my cuda/bin/nvcc: Cuda")
    assert "release 13.0" in carry.nvcc_of(tmp_path)


def test_the_carried_module_is_not_built_again(site):
    site.carried = "gpu/cp312, 90-real"
    (step,) = steps.chosen(["build"])
    assert step.why_not(site) == "carried: gpu/cp312, 90-real"
    site.carried = None
    assert step.command(site, 9.0)[-2:] == ["--architectures", "90-real"]


def test_kernels_are_compiled_beforehand_for_the_largest_size_of_the_plan():
    """The gradient of many rows is another kernel than that of few."""
    text = (HERE / "gpu_proof" / "kernels_beforehand.py").read_text()
    sizes = re.search(r"SIZES, DEPTHS = \(([\d, ]+)\)", text)[1]
    assert max(map(int, sizes.split(","))) >= max(*gpu_latency.LARGE, *gpu.LISTS["quick"][0])


def test_the_peer_is_carried_to_a_python_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr(carry, "SITE", tmp_path / "site")
    find = carry.importlib.util.find_spec
    peer = carry.PEER.replace("-", "_")
    lacking = lambda name, *a: None if name == peer else find(name, *a)  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", lacking)
    here = Site(tmp_path)
    assert not here.importable(peer) and "baseline" in "".join(here.remarks())
    (tmp_path / "site" / peer).mkdir(parents=True)
    assert here.importable(peer) and "baseline" not in "".join(here.remarks())
    assert here.environment({})["PYTHONPATH"].endswith(f":{tmp_path / 'site'}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: find("json"))
    assert str(tmp_path / "site") not in here.environment({})["PYTHONPATH"]


def test_a_peer_that_cannot_be_fetched_is_no_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(carry, "SITE", tmp_path / "site")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    carry.fetch_peer(sys.executable)
    assert "will be left out" in capsys.readouterr().out and not carry.SITE.exists()


def test_compiled_kernels_are_found_where_they_lie_now(tmp_path):
    """Triton's cache names its files by the paths that they were written to."""
    kernel = tmp_path / "triton" / "KEY"
    kernel.mkdir(parents=True)
    group = kernel / "__grp__scan.json"
    group.write_text(json.dumps({"child_paths": {"scan.cubin": "/elsewhere/KEY/scan.cubin"}}))
    assert carry.triton_cache(tmp_path) == tmp_path / "triton"
    found = json.loads(group.read_text())["child_paths"]
    assert found == {"scan.cubin": str(kernel / "scan.cubin")}
    assert carry.triton_cache(tmp_path / "nothing carried") is None
