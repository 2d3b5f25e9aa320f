"""What names of other libraries' arguments are called here."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])

# The first of a function that has the argument of that name; None of any function.
Ways = tuple[tuple[str | None, str], ...]

_MINED = "pairs are mined inside the loss, by "
_OF_MULTI_SIMILARITY = "which MultiSimilarityLoss has as epsilon="
_MINING: Ways = (
    (
        "mining",
        f"{_MINED}mining=, such as mining=MultiSimilarityMining(), {_OF_MULTI_SIMILARITY}",
    ),
    ("epsilon", f"{_MINED}epsilon=, that of MultiSimilarityMining"),
)
_MARGINS: Ways = (
    (None, "margins are similarities: Contrastive has positive_margin and negative_margin"),
)
_TRIPLETS: Ways = ((None, "swap, smoothing and sampling of triplets are not served here"),)
_HINTS: dict[str, Ways] = {
    "indices_tuple": _MINING,
    "miner": _MINING,
    "reducer": (
        (
            "reduction",
            "reduction= is 'mean', 'sum', 'none', or 'mean_valid' over anchors that keep a pair",
        ),
    ),
    "collect_stats": (
        ("keep_statistics", "keep_statistics=True has what mining kept"),
        ("return_statistics", "return_statistics=True has what mining kept"),
    ),
    "pos_margin": _MARGINS,
    "neg_margin": _MARGINS,
    "embedding_regularizer": ((None, "add it to the loss"),),
    "swap": _TRIPLETS,
    "triplets_per_anchor": _TRIPLETS,
    "distance": (
        (
            None,
            "of pair_loss and the losses of labels distance= is None, 'euclidean' or "
            "'squared_euclidean'",
        ),
    ),
    "efficient": (
        (None, "a process has the gradient of its own rows, and there is nothing to choose"),
    ),
    "smooth_loss": (
        (None, "NTXentLoss(temperature=1, mining=HardestMining()) is the soft margin"),
    ),
}
# By another name: where the option that they are called here is one.
_RENAMED = {
    "embedding_size": ("embedding_dim", "embedding_dim= is the length of a row"),
    "memory_size": ("size", "size= is how many rows the memory holds"),
    "temperature": ("scale", "scale= is 1 / temperature"),
    "logit_scale": ("scale", "scale= is the scale itself, such as logit_scale.exp()"),
    "logit_bias": ("bias", "bias= is the bias"),
}
_THERE = "ms_kernels.compat.pytorch_metric_learning has classes that take it"


def refuse_unknown(
    name: str, unknown: Mapping[str, object], known: Iterable[str], alone: bool = False
) -> NoReturn:
    """With the way out where another library has such an argument.

    alone: of a function, for which no other call takes options.
    """
    known = list(known)
    ways: dict[str, None] = {}
    for option in sorted(unknown):
        for here, way in _HINTS.get(option, ()):
            if here is None or here in known or not alone:
                ways[way] = None
                break
    if not _HINTS.keys().isdisjoint(unknown):
        ways[_THERE] = None
    for option in sorted(unknown):
        here, way = _RENAMED.get(option, (None, ""))
        if here in known:
            ways[way] = None
    raise TypeError(
        f"{name}: expected options among {', '.join(known)}, got {', '.join(sorted(unknown))}"
        + "".join(f"; {way}" for way in ways)
    )


def names_the_way(function: Function) -> Function:
    """Of a public function or method: what it has no argument for is refused by `refuse_unknown`,
    not by Python."""
    names = tuple(name for name in inspect.signature(function).parameters if name != "self")
    known = frozenset(names)
    own = function.__name__
    of_class = {"__init__": "", "forward": "()"}.get(own)
    alone = of_class is None and "loss" not in known

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        for option in options:
            if option not in known:
                owner = type(args[0]).__name__ if args else ""
                name = own if of_class is None else f"{owner}{of_class}"
                unknown = {k: v for k, v in options.items() if k not in known}
                refuse_unknown(name, unknown, names, alone)
        return function(*args, **options)

    return cast(Function, call)
