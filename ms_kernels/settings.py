"""Memory budgets and one tolerance, as attributes of `ms_kernels.options`."""

import sys

import torch

from ms_kernels.checks import plain_number, shown

# With so many samples on the larger side, or fewer, the cost of a GPU is launches: the cuda backend
# has one, and backend="auto" takes it. Above, it is products. On an H200, bfloat16 and D = 512, its
# kernel takes 74 us at 1,024 and Triton's 80, in a third of the host's time.
ONE_LAUNCH = 1024
NAMES = ("workspace_bytes", "panel_bytes", "stash_bytes", "skip_below")


class Options:
    """Budgets in bytes, which change speed and memory; and one bounded approximation.

    Its repr has the value of each, and the line of the program that set it:

    >>> ms_kernels.options

    workspace_bytes never changes a bit of a result of the cpu backend; panel_bytes may change the
    last bits of the panels backend, whose products are torch's.

    workspace_bytes: what the cpu backend may spend on partial sums and on similarities kept from
        the forward pass for the gradient, beyond one normalised copy of the embeddings; what the
        triton backend may spend on partial sums, and on a panel of weights. Default 40 MiB: all
        similarities up to N = 4096 on the CPU, less than the L2 cache of a large GPU.
        The cuda backend holds similarities, partial sums and weights of as many rows as fit, 64 at
        least; by tiles it takes up to four times as much.
    panel_bytes: one panel of similarities of the panels backend. Default 16 MiB.
    stash_bytes: what the triton backend may spend on exponentials kept from the forward pass for
        the gradient of half embeddings deeper than 256. Default 288 MiB: up to N = 16384.
    skip_below: cuda by tiles leaves out tiles of negatives so light that no anchor loses more than
        this share of the greatest total weight that any anchor's negatives have. Default 2^-24, the
        rounding of float32; 0 leaves out only what mining emptied. Of float64 embeddings it is
        2^-29 of that share, in proportion to their rounding.
    """

    def __init__(self) -> None:
        self._workspace_bytes = 40 << 20
        self._panel_bytes = 16 << 20
        self._stash_bytes = 288 << 20
        self._skip_below = 2.0**-24
        self._defaults = {name: getattr(self, name) for name in NAMES}
        self._set_at: dict[str, str] = {}

    @property
    def workspace_bytes(self) -> int:
        return self._workspace_bytes

    @workspace_bytes.setter
    def workspace_bytes(self, value: int) -> None:
        self._workspace_bytes = _bytes("workspace_bytes", value, 0)

    @property
    def panel_bytes(self) -> int:
        return self._panel_bytes

    @panel_bytes.setter
    def panel_bytes(self, value: int) -> None:
        self._panel_bytes = _bytes("panel_bytes", value, 1)

    @property
    def stash_bytes(self) -> int:
        return self._stash_bytes

    @stash_bytes.setter
    def stash_bytes(self, value: int) -> None:
        self._stash_bytes = _bytes("stash_bytes", value, 0)

    @property
    def skip_below(self) -> float:
        return self._skip_below

    @skip_below.setter
    def skip_below(self, value: float) -> None:
        value = plain_number(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"options.skip_below: expected a number, got {value!r}")
        if not 0 <= value < 1:
            raise ValueError(f"options.skip_below: expected 0 <= number < 1, got {shown(value)}")
        self._skip_below = float(value)

    def skip_below_of(self, wide: bool) -> float:
        """The share that counts for embeddings that are float64 (`wide`) or not."""
        return self._skip_below * (2.0**-29 if wide else 1.0)

    def __setattr__(self, name: str, value: float) -> None:
        if not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(
                f"options.{name}: expected workspace_bytes, panel_bytes, stash_bytes or "
                f"skip_below, got {name!r}"
            )
        super().__setattr__(name, value)
        if name in NAMES:
            caller = sys._getframe(1)
            self._set_at[name] = f"{caller.f_code.co_filename}:{caller.f_lineno}"

    def __repr__(self) -> str:
        return "\n".join(["ms_kernels.options", *map(self._line, NAMES)])

    def _line(self, name: str) -> str:
        value = getattr(self, name)
        text = f"{value} ({value / 2**20:.4g} MiB)" if name.endswith("_bytes") else f"{value:.4g}"
        origin = ""
        if name in self._set_at:
            origin = f", set at {self._set_at[name]}"
        elif value == self._defaults[name]:
            origin = ", default"
        return f"    {name} = {text}{origin}"


def _bytes(name: str, value: int, least: int) -> int:
    value = plain_number(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"options.{name}: expected a number of bytes (int), got {value!r}")
    if value < least:
        raise ValueError(f"options.{name}: expected at least {least}, got {shown(value)}")
    if value > 1 << 62:
        raise ValueError(f"options.{name}: expected at most 2^62, got {shown(value)}")
    return value


options = Options()


def float32_products() -> str:
    """torch.get_float32_matmul_precision(), which refuses to say what torch.backends was told by
    its newer names, fp32_precision: then what that is of products on a GPU."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        is_tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
        return "high" if is_tf32 else "highest"
