"""pytorch-metric-learning with its pair losses computed by the kernels of this package.

>>> from ms_kernels.compat.pytorch_metric_learning import losses, miners, distributed

instead of `from pytorch_metric_learning import losses, miners` is the only change in a training
script: what is not replaced is the library's own, its other modules too, by whatever path below
this one a line names them. docs/compat.md says what is replaced, what falls back, and what differs.

Developed and tested against 2.9.0. Under 3 nothing is replaced: every module is the library's own,
with one warning.
"""

try:
    import pytorch_metric_learning  # noqa: F401
except ImportError as error:
    raise ImportError(
        "ms_kernels.compat.pytorch_metric_learning: expected the package pytorch-metric-learning, "
        "whose classes it speeds up, got none; pip install pytorch-metric-learning, or use the "
        "losses of ms_kernels themselves, which need nothing but torch"
    ) from error

from ms_kernels.compat.pytorch_metric_learning.mirror import install, parts_of, stand_aside
from ms_kernels.compat.pytorch_metric_learning.peer import untried, version

__version__ = version()

if _untried := untried():
    stand_aside(_untried)
from ms_kernels.compat.pytorch_metric_learning import distributed, losses, miners  # noqa: E402

__all__ = ["distributed", "losses", "miners"]

# The library's other modules: distances, reducers, regularizers, samplers, testers...
__getattr__ = parts_of(__name__)
install()
