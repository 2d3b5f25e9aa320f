"""What names of other libraries' arguments are called here."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])

_MINING = (
    "pairs are mined inside the loss, by mining=, such as mining=MultiSimilarityMining(), which "
    "MultiSimilarityLoss has as epsilon="
)
_MARGINS = "margins are similarities: Contrastive has positive_margin and negative_margin"
_HINTS = {
    "indices_tuple": _MINING,
    "miner": _MINING,
    "reducer": "reduction= is 'mean', 'sum', 'none', or 'mean_valid' over anchors that keep a pair",
    "collect_stats": "keep_statistics=True has what mining kept",
    "pos_margin": _MARGINS,
    "neg_margin": _MARGINS,
    "embedding_regularizer": "add it to the loss",
    "swap": "swap, smoothing and sampling of triplets are not served here",
    "triplets_per_anchor": "swap, smoothing and sampling of triplets are not served here",
    "distance": "of pair_loss and the losses of labels distance= is None, 'euclidean' or "
    "'squared_euclidean'",
    "efficient": "a process has the gradient of its own rows, and there is nothing to choose",
    "smooth_loss": "NTXentLoss(temperature=1, mining=HardestMining()) is the soft margin",
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


def refuse_unknown(name: str, unknown: Mapping[str, object], known: Iterable[str]) -> NoReturn:
    """With the way out where another library has such an argument."""
    known = list(known)
    ways = dict.fromkeys(_HINTS[option] for option in sorted(unknown) if option in _HINTS)
    if ways:
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

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        for option in options:
            if option not in known:
                owner = type(args[0]).__name__ if args else ""
                name = own if of_class is None else f"{owner}{of_class}"
                refuse_unknown(name, {k: v for k, v in options.items() if k not in known}, names)
        return function(*args, **options)

    return cast(Function, call)
