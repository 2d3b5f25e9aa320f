"""What names of other libraries' arguments are called here."""

from collections.abc import Iterable, Mapping
from typing import NoReturn

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
    "smooth_loss": "NTXentLoss(temperature=1, mining=HardestMining()) is the soft margin",
}
_THERE = "ms_kernels.compat.pytorch_metric_learning has classes that take it"


def refuse_unknown(name: str, unknown: Mapping[str, object], known: Iterable[str]) -> NoReturn:
    """With the way out where another library has such an argument."""
    ways = dict.fromkeys(_HINTS[option] for option in sorted(unknown) if option in _HINTS)
    if ways:
        ways[_THERE] = None
    raise TypeError(
        f"{name}: expected options among {', '.join(known)}, got {', '.join(sorted(unknown))}"
        + "".join(f"; {way}" for way in ways)
    )
