"""Every module of pytorch-metric-learning by a path below this package, so that any import line may
be changed: `from ms_kernels.compat.pytorch_metric_learning.distances import CosineSimilarity`.

A module is the library's own object, with its state, unless it has classes or modules that are
replaced: then it is one of ours with the library's names and our classes.
"""

import importlib
import importlib.abc
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from ms_kernels.compat.pytorch_metric_learning.peer import untried

HERE = __name__.rpartition(".")[0]
THEIRS = "pytorch_metric_learning"
# Where version 2 has what version 3 and we have elsewhere.
MOVED = {"utils.distributed": "distributed"}
OURS = ("losses", "miners", "distributed")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds what the library has and this package has not."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        name = below(fullname)
        if name is None or is_own(name):
            return None
        if name not in MOVED and importlib.util.find_spec(f"{THEIRS}.{name}") is None:
            return None
        return ModuleSpec(fullname, self, is_package=True)  # so that a submodule may be asked for

    def exec_module(self, module: ModuleType) -> None:
        """The module itself, or what takes its place in sys.modules."""
        name = below(module.__name__)
        assert name is not None
        if name in MOVED:
            sys.modules[module.__name__] = importlib.import_module(f"{HERE}.{MOVED[name]}")
            return
        their = importlib.import_module(f"{THEIRS}.{name}")
        names = replacements().get(their.__name__, {})  # and not of what it imports for its use
        if not names and not any(moved.startswith(f"{name}.") for moved in MOVED):
            sys.modules[module.__name__] = their
            return
        own = vars(module).keys() | {"__builtins__", "__file__", "__cached__"}
        kept = {k: v for k, v in vars(their).items() if k not in own and not is_part(v, name)}
        vars(module).update({**kept, **names, "__getattr__": parts_of(module.__name__)})
        module.__doc__ = their.__doc__


def below(fullname: str) -> str | None:
    """The part of a name below this package."""
    return fullname.removeprefix(f"{HERE}.") if fullname.startswith(f"{HERE}.") else None


def is_own(name: str) -> bool:
    """Whether this package has a file of that name."""
    path = Path(__file__).parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def is_part(value: object, name: str) -> bool:
    """Whether it is a submodule of the library's module of that name, which is asked for anew."""
    return isinstance(value, ModuleType) and value.__name__.startswith(f"{THEIRS}.{name}.")


def replacements() -> dict[str, dict[str, type]]:
    """By the library's module, the names of classes that it defines, and ours for them."""
    if untried():
        return {}
    modules = (importlib.import_module(f"{HERE}.{name}") for name in OURS)
    found: dict[str, dict[str, type]] = {}
    for kind in (kind for module in modules for kind in module.REPLACED):
        their = next(c for c in kind.__mro__ if c.__module__.startswith(f"{THEIRS}."))
        found.setdefault(their.__module__, {})[their.__name__] = kind
    return found


def parts_of(package: str) -> Callable[[str], Any]:
    """`__getattr__` of a package, whose submodules are imported when they are asked for."""

    def get(name: str) -> Any:
        full = f"{package}.{name}"
        if name.startswith("__"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return importlib.import_module(full)
        except ModuleNotFoundError as error:
            if error.name != full:  # it needs a package that is missing
                raise
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None

    return get


def without_parts(names: dict[str, Any], package: str) -> None:
    """Takes the library's submodules out of a namespace that `import *` has filled."""
    name = below(package)
    assert name is not None
    for key in [key for key, value in names.items() if is_part(value, name)]:
        del names[key]


def stand_aside(reason: str) -> None:
    """The library's own modules by the names of ours, of which none is imported: they know its
    classes, their arguments and some of its private names."""
    warnings.warn(
        f"{HERE}: {reason} was not tried, 2.9.0 was; nothing is replaced: losses, miners and all "
        "else are pytorch-metric-learning's own, with their time and memory",
        stacklevel=3,  # who imports the package
    )
    for name in OURS:
        sys.modules[f"{HERE}.{name}"] = importlib.import_module(f"{THEIRS}.{name}")


def install() -> None:
    """Before the finder of paths, which would load the library's files a second time."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
