"""What the stand-in of the CUDA runtime saw, and how it is told to capture or to fail."""

import contextlib
import ctypes
import shutil
from dataclasses import dataclass
from types import SimpleNamespace

from host_gpu import build

# Its devices, by what they hold: blocks in all. Only EXECUTES runs what is launched.
EXECUTES, LARGE, SMALL, TOO_SMALL = range(4)
BLOCKS = {EXECUTES: 3, LARGE: 264, SMALL: 1, TOO_SMALL: 0}


@dataclass(frozen=True)
class Call:
    function: str
    details: dict[str, str]

    @property
    def launches(self):
        return self.function.startswith("cudaLaunch")

    def __getattr__(self, name):
        value = self.details[name]
        return int(value, 16) if name == "kernel" else int(value)


class Runtime:
    def __init__(self, module):
        self._library = ctypes.CDLL(module.__file__)
        self._library.host_gpu_recorded.restype = ctypes.c_size_t
        self._library.host_gpu_capture.argtypes = [ctypes.c_size_t]

    @contextlib.contextmanager
    def recorded(self):
        """A list that has the calls of the block when it ends."""
        calls = []
        self._library.host_gpu_record(1)
        try:
            yield calls
        finally:
            size = self._library.host_gpu_recorded(None, ctypes.c_size_t(0))
            text = ctypes.create_string_buffer(size + 1)
            self._library.host_gpu_recorded(text, ctypes.c_size_t(size + 1))
            for line in text.value.decode().splitlines():
                function, *details = line.split()
                calls.append(Call(function, dict(d.split("=") for d in details)))
            self._library.host_gpu_record(0)

    @contextlib.contextmanager
    def capturing(self, stream):
        """As if a graph of that stream were being captured."""
        self._library.host_gpu_capture(stream)
        try:
            yield
        finally:
            self._library.host_gpu_capture(0)

    def fails(self, function, error):
        """The next call of that function gives that error."""
        self._library.host_gpu_fail(function.encode(), error)


def elsewhere(module, device, stream):
    """The module, whose work goes to that device and stream: of CPU tensors the backend says 0."""

    class Call(module.Call):
        def run(self, workspace, _device, _stream):
            super().run(workspace, device, stream)

        def run_again(self, inputs, outputs, workspace, _device, _stream):
            super().run_again(inputs, outputs, workspace, device, stream)

    return SimpleNamespace(**{**vars(module), "Call": Call})


def fresh(folder):
    """The module as no call has seen it: what it keeps from a first call is not there."""
    path = folder / f"{folder.name}.so"  # a name of its own
    shutil.copy(build.build(), path)
    return build.load(path)
