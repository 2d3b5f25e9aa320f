"""What is not served is said once, or refused."""

import warnings
from collections import Counter
from typing import Any

from ms_kernels.checks import check_flag

OURS = __name__.rpartition(".")[0]
FORMULAS = (
    "forward",
    "compute_loss",
    "_compute_loss",
    "pos_calc",
    "neg_calc",
    "nca_computation",
    "mine",
)


class Unserved(Exception):
    """The option that stands in the way; raised before any work."""


def own_formula(kind: type) -> str | None:
    """What a subclass of a class of ours computes otherwise, and so we cannot."""
    for cls in kind.__mro__:
        if cls.__module__.startswith(OURS):
            return None
        for name in FORMULAS:
            if name in vars(cls):
                return f"{cls.__name__}.{name}"
    return None


class Fallible:
    """Mixed into a class of pytorch-metric-learning, before it.

    strict: raise where an option is not served. Default False: the call goes to
        pytorch-metric-learning's own class, with one warning for each option.

    `calls` counts how calls were computed; "fallback" by pytorch-metric-learning.
    """

    _own_formula: str | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._own_formula = own_formula(cls)

    def __init__(self, *args: Any, strict: bool = False, **kwargs: Any) -> None:
        check_flag("strict", strict)
        super().__init__(*args, **kwargs)
        self.strict = strict
        self.calls: Counter[str] = Counter()
        self._warned: set[str] = set()

    def check_served(self) -> None:
        """`Unserved` if no option would help."""
        if self._own_formula:
            raise Unserved(self._own_formula)

    def fall_back(self, option: str) -> None:
        name = type(self).__name__
        if self.strict:
            raise ValueError(
                f"{name}: expected options that the kernels serve, got {option}; without "
                "strict=True pytorch-metric-learning computes it"
            )
        self.calls["fallback"] += 1
        if option not in self._warned:
            self._warned.add(option)
            warnings.warn(
                f"{name}: {option} is not served by ms_kernels; pytorch-metric-learning computes "
                "it, with its time and memory",
                stacklevel=5,  # who calls the module: forward and two calls of torch's lie between
            )
