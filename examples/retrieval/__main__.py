"""python -m examples.retrieval train | evaluate | check"""

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from examples.retrieval import checkpoint
from examples.retrieval.criterion import LOSSES, MININGS
from examples.retrieval.dry_run import TINY, dry_options, make_tiny
from examples.retrieval.options import DATASETS, Options, options_of
from examples.retrieval.processes import Processes
from examples.retrieval.refusal import Refusal, plain
from examples.retrieval.released import other_than_released
from examples.retrieval.stopping import Stopped
from examples.retrieval.train import Run, benchmark_of, train

# What the paper has suits published weights. A small network starts from nothing, on small images.
SMALL = {"size": 64, "lr": 1e-3, "dim": 128}
GLYPHS = {"size": 32, "least_crop": 0.7}
STOPPED, REFUSED = 130, 2


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m examples.retrieval", description=__doc__)
    commands = found.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train on a benchmark, evaluate, draw neighbours")
    _add_training(training)
    scoring = commands.add_parser("evaluate", help="score a checkpoint")
    scoring.add_argument("--output", required=True, help="the folder that train wrote")
    scoring.add_argument("--root", help="where the images are now; default: where they were")
    _add_common(scoring)
    checking = commands.add_parser("check", help="decode every image of a benchmark")
    checking.add_argument("--dataset", required=True, choices=DATASETS)
    checking.add_argument("--root", help="its folder")
    return found


def _add_training(add: argparse.ArgumentParser) -> None:
    """None is what was not given; Options knows the defaults."""
    new: Any = add.add_argument
    new("--dataset", choices=DATASETS, help="which benchmark; glyphs is one that pip can bring")
    new("--root", help="its folder, as released and unpacked")
    new("--output", help="folder of checkpoint, results and picture; default runs/DATASET-LOSS")
    new("--dry-run", action="store_true", help="tiny data sets, of all layouts or of --dataset")
    new("--resume", action="store_true", help="go on from the checkpoint in --output")
    new("--loss", choices=LOSSES, help="default ms")
    new("--loss-option", action="append", metavar="NAME=NUMBER", help="such as beta=40; repeat")
    new("--mining", choices=MININGS, help="default: ms for the loss ms, else none")
    new("--mining-option", action="append", metavar="NAME=NUMBER", help="such as epsilon=0.2")
    new("--memory", type=_whole(0), help="rows of a cross-batch memory; default 0")
    new("--memory-warmup", type=_whole(0), help="steps before it is used; default 0")
    new("--classes", type=_whole(1), help="of a batch; default 16")
    new("--images", type=_whole(2), help="of each class; default 5")
    new("--dim", type=_whole(1), help="of the embedding; default 512, or 128 with small")
    new(
        "--backbone",
        help="small (default), timm/NAME, torchvision/NAME or module:function of your own",
    )
    new(
        "--no-pretrained",
        dest="pretrained",
        action="store_false",
        default=None,
        help="without the published weights",
    )
    new("--size", type=_whole(8), help="of the crops; default 224, or 64 with small")
    new("--least-crop", type=_share, help="least share of the area of a crop; default 0.2")
    new("--batch-norm", choices=("frozen", "train"), help="default frozen")
    new("--lr", type=_positive, help="of Adam; default 3e-5, or 1e-3 with small")
    new("--weight-decay", type=_not_negative, help="default 5e-4")
    new(
        "--amp",
        action="store_true",
        default=None,
        help="bfloat16 in the network; the loss stays float32",
    )
    new("--seed", type=_whole(0), help="default 0")
    new("--steps", type=_whole(1), help="default 3000")
    new("--save-every", type=_whole(0), help="steps; default 500")
    new("--evaluate-every", type=_whole(0), help="steps; default 0, only at the end")
    new(
        "--tensorboard", action="store_true", default=None, help="losses and scores for TensorBoard"
    )
    _add_common(add)


def _add_common(add: argparse.ArgumentParser) -> None:
    add.add_argument("--ks", type=_ks, help="K of Recall@K, such as 1,10,100")
    add.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default auto")
    add.add_argument("--workers", type=_whole(0), help="that decode images; default 0")
    add.add_argument("--test-batch", type=_whole(1), help="default 128")


def _whole(least: int) -> Any:
    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) < 2**31:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {least} on, got {text!r}"
            )
        return int(text)

    return read


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None


def _positive(text: str) -> float:
    if not 0 < (value := _number(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _not_negative(text: str) -> float:
    if not 0 <= (value := _number(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"expected 0 or a number above it, got {text!r}")
    return value


def _share(text: str) -> float:
    if not 0 < (value := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"expected a share, above 0 and up to 1, got {text!r}")
    return value


def _ks(text: str) -> tuple[int, ...]:
    return tuple(_whole(1)(part) for part in text.split(","))


def _rule_options(option: str, given: list[str] | None) -> dict[str, float]:
    found = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise Refusal(f"{option}: expected NAME=NUMBER, such as beta=40, got {text!r}")
        found[name] = int(number) if value.lstrip("-").isdigit() else number
    return found


def _chosen(given: argparse.Namespace) -> dict[str, Any]:
    """The options of a run that were given."""
    found = {
        name: value
        for name, value in vars(given).items()
        if value is not None and name in Options.__dataclass_fields__
    }
    found["loss_options"] = _rule_options("--loss-option", given.loss_option)
    found["mining_options"] = _rule_options("--mining-option", given.mining_option)
    return found


def training_options(given: argparse.Namespace) -> Options:
    chosen = _chosen(given)
    usual = Options(given.dataset)
    backbone, loss = chosen.get("backbone", usual.backbone), chosen.get("loss", usual.loss)
    defaults: dict[str, Any] = dict(SMALL) if backbone == "small" else {}
    defaults |= GLYPHS if given.dataset == "glyphs" else {}
    return Options(**{**defaults, "output": f"runs/{given.dataset}-{loss}", **chosen})


def dry_run(given: argparse.Namespace, processes: Processes) -> None:
    """With every option that is given; small ones stand in for those that are not."""
    if given.dataset == "glyphs":
        raise Refusal("--dataset: expected cub, cars, sop or inshop with --dry-run, got glyphs")
    for name in ("root", "output", "resume"):
        if getattr(given, name):
            raise Refusal(
                f"--{name}: expected none with --dry-run, which makes its images and leaves "
                "nothing, got one; leave it or --dry-run out"
            )
    rule = _chosen(given)
    rule.pop("dataset", None)
    with contextlib.ExitStack() as stack:
        folder = ""
        if processes.is_first:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="retrieval-"))
        folder = processes.of_first(folder)
        for name in TINY if given.dataset is None else [given.dataset]:
            if processes.is_first:
                make_tiny(name, Path(folder))
            processes.wait()
            train(dry_options(name, Path(folder), **rule), processes, resume=False)
        # The others may still read images when the first is done.
        processes.wait()
    if processes.is_first:
        print("\nThe dry run is done: tiny images of coloured noise, so its scores say nothing.")


def evaluate(given: argparse.Namespace, processes: Processes) -> None:
    path = Path(given.output) / checkpoint.NAME
    state = checkpoint.load(path)
    usual = Options("cub")
    free = {name: getattr(usual, name) for name in ("device", "workers", "test_batch", "ks")}
    free |= {"root": state["options"].get("root")}
    for name in free:
        if getattr(given, name) is not None:
            free[name] = getattr(given, name)
    # Its weights come from the checkpoint.
    options = options_of(state["options"], output=given.output, pretrained=False, **free)
    run = Run(options, benchmark_of(options), processes)
    checkpoint.check_images(path, state, run.images)
    checkpoint.fill(path, state, "model", run.model)
    if processes.is_first and (other := other_than_released(run.benchmark)) is not None:
        print(other)
    run.step, run.losses, run.scores = state["step"], state["losses"], state["scores"]
    run.report("evaluation.json")


def check(given: argparse.Namespace) -> None:
    benchmark = benchmark_of(Options(given.dataset, root=given.root))
    broken, count = [], 0
    for name, images in benchmark.parts.items():
        print(f"{name}: {len(images.labels)} images of {len(set(images.labels))} classes")
        for index in tqdm(range(len(images.labels)), desc=name, unit="image", disable=None):
            count += 1
            try:
                images.read(index)
            except Refusal:
                broken.append(images.name(index))
    if broken:
        listed = "\n  ".join(broken)
        raise Refusal(f"{len(broken)} of {count} images cannot be decoded:\n  {listed}")
    print(f"all {count} images can be decoded")
    if (other := other_than_released(benchmark)) is not None:
        print(other)


def _together(given: argparse.Namespace) -> None:
    """What all processes under torchrun do, who meet once: a group that is made anew may meet what
    is left of the last one."""
    if given.command == "train" and not given.dry_run and given.dataset is None:
        raise Refusal(f"--dataset: expected one of {', '.join(DATASETS)}, or --dry-run")
    processes = Processes(given.device or "auto")
    try:
        if given.command == "evaluate":
            evaluate(given, processes)
        elif given.dry_run:
            dry_run(given, processes)
        else:
            train(training_options(given), processes, given.resume)
    finally:
        processes.end()


def main() -> None:
    given = parser().parse_args()
    try:
        if given.command == "check":
            check(given)
        else:
            _together(given)
    except Stopped as stop:
        print(f"\n{stop}; --resume goes on from there", file=sys.stderr)
        sys.exit(STOPPED)
    except Refusal as refusal:
        print(f"retrieval {given.command}: {plain(refusal)}", file=sys.stderr)
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        kept = "; the last checkpoint stays as it is" if given.command == "train" else ""
        print(f"\nretrieval {given.command}: interrupted{kept}", file=sys.stderr)
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
