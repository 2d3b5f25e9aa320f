"""What is asked at every call, with the same arguments, and need be found out once."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def once(function: Callable[P, T]) -> Callable[P, T]:
    """Answers are kept, by arguments and their types. A graph traces the function itself; what
    cannot be looked up, and what is refused, is asked each time."""
    kept = functools.lru_cache(maxsize=64, typed=True)(function)

    @functools.wraps(function)
    def ask(*args: P.args, **options: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return function(*args, **options)
        for value in args:  # one that learns is itself, not what it is worth now
            if isinstance(value, torch.Tensor):
                return function(*args, **options)
        try:
            return kept(*args, **options)  # type: ignore[arg-type]
        except TypeError:
            return function(*args, **options)

    return ask
