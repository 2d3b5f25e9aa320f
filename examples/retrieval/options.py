"""What a run is given, and what of it makes another run."""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

DATASETS = ("cub", "cars", "sop", "inshop", "glyphs")
# These change where a run goes on, or how fast, but not what it computes.
FREE = (
    "root",
    "output",
    "steps",
    "workers",
    "save_every",
    "evaluate_every",
    "tensorboard",
    "ks",
    "test_batch",
)


@dataclass(frozen=True)
class Options:
    """One training run; the defaults are the paper's where it names them."""

    dataset: str
    root: str | None = None
    output: str = "runs"
    loss: str = "ms"
    loss_options: dict[str, float] = field(default_factory=dict)
    mining: str | None = None  # None: MS mining for the MS loss, none for others
    mining_options: dict[str, float] = field(default_factory=dict)
    memory: int = 0
    memory_warmup: int = 0
    classes: int = 16
    images: int = 5
    dim: int = 512
    backbone: str = "small"
    pretrained: bool = True
    size: int = 224
    least_crop: float = 0.2
    batch_norm: str = "frozen"
    lr: float = 3e-5
    weight_decay: float = 5e-4
    amp: bool = False
    device: str = "auto"
    seed: int = 0
    steps: int = 3000
    ks: tuple[int, ...] = ()
    test_batch: int = 128
    workers: int = 0
    save_every: int = 500
    evaluate_every: int = 0
    tensorboard: bool = False

    def kept(self) -> dict[str, Any]:
        """As a checkpoint has it."""
        return {**asdict(self), "ks": list(self.ks)}

    def resolved(self, device: str) -> "Options":
        """With what was left to the trainer: the kind of device, and the mining of the loss."""
        mining = self.mining or ("ms" if self.loss == "ms" else "none")
        return replace(self, device=device, mining=mining)


def options_of(kept: dict[str, Any], **changed: Any) -> Options:
    """Those of a checkpoint, with some changed."""
    known = {f.name for f in fields(Options)}
    found = {name: value for name, value in kept.items() if name in known}
    return Options(**{**found, "ks": tuple(found.get("ks", ())), **changed})


def differences(kept: dict[str, Any], given: Options) -> list[str]:
    """What makes the run given another one than the run kept."""
    mine = given.kept()
    return [
        f"--{name.replace('_', '-')}: the checkpoint has {kept.get(name)!r}, given was {value!r}"
        for name, value in mine.items()
        if name not in FREE and kept.get(name) != value
    ]
