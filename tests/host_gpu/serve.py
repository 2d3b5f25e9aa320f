"""Lets a module that a CPU executes serve the cuda backend."""

from ms_kernels import dispatch
from ms_kernels.backends import cuda


def serve(monkeypatch, module, path="one_launch"):
    """`path`: one_launch or by_tiles, whatever the size of the batch; the backend's name."""
    built, why_missing = dispatch.built(), dispatch.why_missing
    monkeypatch.setitem(dispatch.DEVICE_OF, "cuda", "cpu")
    monkeypatch.setattr(dispatch, "built", lambda: built)
    monkeypatch.setattr(dispatch, "why_missing", lambda n: None if n == "cuda" else why_missing(n))
    monkeypatch.setattr(cuda, "_module", lambda: module)
    monkeypatch.setattr(cuda, "ONE_LAUNCH", {"one_launch": 2**31, "by_tiles": -1}[path])
    return "cuda"
