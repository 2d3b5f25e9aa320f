"""Which pytorch-metric-learning is here, and whether its classes are known well enough."""

import pytorch_metric_learning

TRIED = "2."


def untried() -> str | None:
    """Why nothing is replaced, if so: another major version means other losses by these names."""
    version = pytorch_metric_learning.__version__
    if version.startswith(TRIED):
        return None
    return f"pytorch-metric-learning {version}, of which 2.9.0 was tried"
