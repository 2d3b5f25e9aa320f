"""Lets a module that a CPU executes serve the cuda backend."""

import shutil

from host_gpu import build

from ms_kernels.backends import cuda, cuda_call, dispatch


def serve(monkeypatch, module, path="one_launch"):
    """`path`: one_launch or by_tiles, whatever the size of the batch, or small, for batches that it
    takes; the backend's name."""
    built, why_missing = dispatch.built(), dispatch.why_missing
    monkeypatch.setitem(dispatch.DEVICE_OF, "cuda", "cpu")
    monkeypatch.setattr(dispatch, "built", lambda *_: built)
    monkeypatch.setattr(dispatch, "why_missing", lambda n: None if n == "cuda" else why_missing(n))
    monkeypatch.setattr(cuda_call, "module", lambda: module)
    monkeypatch.setattr(cuda_call, "DEVICE", "cpu")
    monkeypatch.setattr(cuda, "ONE_LAUNCH", {"by_tiles": -1}.get(path, 2**31))
    monkeypatch.setattr(cuda, "SMALL", 1024 if path == "small" else -1)
    return "cuda"


def few_tiles_are_many(folder):
    """A copy of the sources that divides a batch of hundreds as others divide one of thousands."""
    shutil.copytree(build.CSRC, folder)
    for name, before, after in (
        ("host/plan_tiled.cpp", "kManyBlocks = 1056;", "kManyBlocks = 3;"),
        ("host/plan_tiled.cpp", "std::int64_t(1) << 24;", "20;"),
        ("core/geometry.h", "kListedPerBlock = 4;", "kListedPerBlock = 1;"),
        ("core/geometry.h", "kSegment = 32;", "kSegment = 2;"),
        ("tiled/tile_list.cuh", "kListStep = kThreads<P>;", "kListStep = 2;"),
    ):
        source = (folder / "cuda" / name).read_text()
        assert before in source
        (folder / "cuda" / name).write_text(source.replace(before, after))
    return folder
