"""Which pytorch-metric-learning is here, and whether its classes are known well enough."""

from importlib import metadata

import pytorch_metric_learning

TRIED = "2."


def version() -> str:
    """Of the package, of whose module version 3 has none."""
    known: str | None = getattr(pytorch_metric_learning, "__version__", None)
    return metadata.version("pytorch-metric-learning") if known is None else known


def untried() -> str | None:
    """Why nothing is replaced, if so: another major version means other losses by these names."""
    found = version()
    return None if found.startswith(TRIED) else f"pytorch-metric-learning {found}"
