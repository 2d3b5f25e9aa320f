"""Losses and scores for TensorBoard, which need not be installed."""

from pathlib import Path
from typing import Any

from examples.retrieval.options import Options
from examples.retrieval.refusal import Refusal


def check_tensorboard(options: Options) -> None:
    if options.tensorboard:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise Refusal(
                "--tensorboard: expected tensorboard to be installed: pip install tensorboard, or "
                "leave the option out; results.json has the losses too"
            ) from error


def writer_of(options: Options) -> Any:
    if not options.tensorboard:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(Path(options.output) / "tensorboard"))
