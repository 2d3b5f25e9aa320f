"""The loop: it can be stopped at any step, and goes on to the same bits."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import ms_kernels
from examples.retrieval import checkpoint
from examples.retrieval.board import check_tensorboard, writer_of
from examples.retrieval.criterion import criterion_of
from examples.retrieval.evaluate import embed_all, ks_of, scores_of
from examples.retrieval.glyphs import glyphs
from examples.retrieval.images import Crops, Decoded, TrainingChange, seeded
from examples.retrieval.layouts import LAYOUTS, Benchmark
from examples.retrieval.model import Embedder, backbone_of, normalisation_of
from examples.retrieval.options import Options
from examples.retrieval.processes import Processes
from examples.retrieval.refusal import Refusal
from examples.retrieval.released import other_than_released
from examples.retrieval.report import (
    draw_neighbours,
    percentages,
    table,
    write_results,
)
from examples.retrieval.sampler import ClassSampler, Steps, share
from examples.retrieval.stopping import Stopped, StopSignal, leave_signals

LOG_EVERY = 20  # steps: reading a loss waits for a GPU


def benchmark_of(options: Options) -> Benchmark:
    if options.dataset == "glyphs":
        return glyphs(None if options.root is None else Path(options.root))
    if options.root is None:
        raise Refusal(f"--root: expected the folder of {options.dataset}, got none")
    return LAYOUTS[options.dataset](Path(options.root))


class Run:
    """Everything that a run is made of; nothing is computed yet."""

    def __init__(self, options: Options, benchmark: Benchmark, processes: Processes) -> None:
        self.options, self.benchmark, self.processes = options, benchmark, processes
        self.ks = ks_of(options, benchmark)
        self.images = checkpoint.images_of(benchmark)
        if options.batch_norm == "train" and processes.world > 1:
            raise Refusal(
                "--batch-norm: expected frozen with several processes, each of which would have "
                "statistics of its own, got train"
            )
        labels = benchmark.train.labels
        if processes.world > options.classes * options.images:
            raise Refusal(
                "--classes, --images: expected a batch of at least as many images as the "
                f"{processes.world} processes that share it, got {options.classes} x "
                f"{options.images}; start fewer processes, or choose more images"
            )
        self.sampler = ClassSampler(labels, options.classes, options.images, options.seed)
        torch.backends.cudnn.deterministic = True
        torch.manual_seed(seeded("weights", options.seed).initial_seed())
        backbone, features = backbone_of(
            options.backbone, benchmark.channels, options.size, options.pretrained
        )
        frozen = options.batch_norm == "frozen"
        pixels = normalisation_of(backbone, benchmark.channels)
        self.model = Embedder(backbone, features, options.dim, frozen, pixels).to(processes.device)
        self.criterion = criterion_of(options).to(processes.device)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=options.lr, weight_decay=options.weight_decay
        )
        self.step = 0
        self.losses: list[list[float]] = []  # step, loss
        self.scores: list[dict[str, float]] = []
        self.seconds: list[float] = []  # of steps since the run began or went on

    @property
    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "criterion": self.criterion}

    @property
    def path(self) -> Path:
        return Path(self.options.output) / checkpoint.NAME

    def resume(self) -> None:
        state = checkpoint.load(self.path)
        checkpoint.check(self.path, state, self.options, self.processes.world)
        checkpoint.check_images(self.path, state, self.images)
        self.step = checkpoint.restore(self.path, state, self.parts, self.processes.rank)
        self.losses, self.scores = list(state["losses"]), list(state["scores"])

    def save(self) -> None:
        """Together, for each process has a state of chance of its own."""
        chances = self.processes.of_each(checkpoint.chance())
        if self.processes.is_first:
            state = {name: part.state_dict() for name, part in self.parts.items()}
            state |= {"options": self.options.kept(), "step": self.step, "chance": chances}
            state |= {"losses": self.losses, "scores": self.scores}
            state["images"] = self.images
            checkpoint.save(self.path, state)

    def train(self) -> None:
        options, processes = self.options, self.processes
        writer = writer_of(options) if processes.is_first else None
        model = processes.wrapped(self.model)
        self.model.train()
        bar = tqdm(
            total=options.steps,
            initial=self.step,
            desc="training",
            unit="step",
            disable=None if processes.is_first else True,
        )
        with StopSignal() as stop, bar:
            batches = iter(self._batches())
            while True:
                if self._scores_are_due:
                    # A stop does not wait for them: the run that goes on begins with them.
                    self._end_if(stop.came)
                    self._note_scores(stop, writer)
                if self.seconds and options.save_every and self.step % options.save_every == 0:
                    self.save()
                if self.step == options.steps:
                    break
                since = time.perf_counter()
                x = self._next(batches, stop)
                loss = self._train_step(model, x)
                bar.update()
                if self.step % LOG_EVERY == 0 or self.step == options.steps:
                    self.losses.append([self.step, loss.item()])
                    bar.set_postfix(loss=f"{self.losses[-1][1]:.4f}", refresh=False)
                    if bar.disable and processes.is_first:  # nobody sees a bar
                        print(f"step {self.step}: loss {self.losses[-1][1]:.4f}", flush=True)
                    if writer is not None:
                        writer.add_scalar("loss", self.losses[-1][1], self.step)
                self.seconds.append(time.perf_counter() - since)
            self._end_if(stop.came)
        self.save()
        if writer is not None:
            writer.close()

    def _next(self, batches: Iterator[Tensor], stop: StopSignal) -> Tensor:
        failure = None
        try:
            x = next(batches)
        except Exception as error:
            failure = error
        self._end_if(stop.came, failure)
        return x

    def _end_if(self, stopped: bool, failure: Exception | None = None) -> None:
        """All processes end together, after the same step, as soon as one has to; all is saved."""
        processes = self.processes
        if not processes.any(stopped or failure is not None):
            return
        self.save()
        if processes.any(stopped):  # which may be why a loader fails
            raise Stopped(f"stopped at step {self.step}, saved in {self.path}") from failure
        if isinstance(failure, Refusal) or failure is None:
            text = processes.told(failure)
            raise Refusal(f"{text}; saved in {self.path} after step {self.step}") from failure
        processes.told(failure)
        raise failure

    @property
    def _scores_are_due(self) -> bool:
        every = self.options.evaluate_every
        done = self.scores[-1]["step"] if self.scores else 0
        return bool(every) and self.step % every == 0 and self.step > done

    def training_images(self) -> Decoded:
        """By (index, draw)."""
        options = self.options
        crops = Crops(options.size, options.least_crop, self.benchmark.flip)
        change = TrainingChange(crops, options.seed)
        return Decoded(self.benchmark.train, self.model.normalisation, change)

    def _batches(self) -> Any:
        options, processes = self.options, self.processes
        sizes = self.step, options.steps, processes.rank, processes.world
        return torch.utils.data.DataLoader(
            self.training_images(),
            batch_sampler=Steps(self.sampler, *sizes),
            num_workers=options.workers,
            worker_init_fn=leave_signals,
            generator=seeded("workers", options.seed),  # else torch's own would lose a number
            pin_memory=processes.device.type == "cuda",
        )

    def _train_step(self, model: Any, x: Tensor) -> Tensor:
        processes = self.processes
        whole = self.sampler.batch(self.step)
        own = list(zip(whole.items, whole.labels, strict=True))
        own = share(own, processes.rank, processes.world)
        labels = torch.tensor([label for _, label in own], device=processes.device)
        # By ids a memory knows an image again, and a crop of it is no pair of another crop.
        ids = torch.tensor([index for (index, _), _ in own], device=processes.device)
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=self.options.amp):
            embeddings = model(x.to(processes.device, non_blocking=True))
        loss: Tensor = self.criterion(embeddings.float(), labels, ids=ids)
        self.optimizer.zero_grad()
        # DistributedDataParallel divides gradients by the number of processes.
        (loss * processes.world).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1
        return loss.detach()

    def _note_scores(self, stop: StopSignal, writer: Any) -> None:
        try:
            embedded = embed_all(self.model, self.benchmark, self.options, self.processes)
        except Exception as error:
            self._end_if(stop.came, error)
            raise
        found = percentages(scores_of(embedded, self.ks))
        self.scores.append({"step": self.step, **found})
        if self.processes.is_first:
            shown = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
            tqdm.write(f"step {self.step}: {shown}")
            if writer is not None:
                for name, value in found.items():
                    writer.add_scalar(name, value, self.step)

    def report(self, name: str = "results.json") -> dict[str, Any]:
        """Scores of the model as it is; prints and writes them."""
        embedded = embed_all(self.model, self.benchmark, self.options, self.processes)
        scores = scores_of(embedded, self.ks)
        later = sorted(self.seconds[2:] or self.seconds)  # the first steps warm caches
        found = {
            "options": self.options.kept(),
            "step": self.step,
            "scores": percentages(scores),
            "queries": scores.queries,
            "without_relevant": scores.without_relevant,
            "losses": self.losses,
            "scores_during_training": self.scores,
            "seconds_a_step": later[len(later) // 2] if later else None,
            "torch": torch.__version__,
        }
        if self.processes.is_first:
            folder = Path(self.options.output)
            folder.mkdir(parents=True, exist_ok=True)
            print(f"\n{self.benchmark.name} after {self.step} steps\n\n{table(scores)}\n")
            write_results(folder / name, found)
            print(f"results: {folder / name}")
            print(draw_neighbours(embedded, self.benchmark, folder / "neighbours.png"))
        return found


def train(options: Options, processes: Processes, resume: bool) -> dict[str, Any]:
    """A run from its beginning, or from where it stopped, to its table."""
    check_tensorboard(options)
    options = options.resolved(processes.device.type)
    folder = Path(options.output)
    if not resume and (folder / checkpoint.NAME).exists():
        raise Refusal(
            f"--output: expected a folder without a checkpoint, got {str(folder)!r}; --resume "
            "goes on from it, another --output leaves it as it is"
        )
    run = Run(options, benchmark_of(options), processes)
    if resume:
        run.resume()
    # A process that is late must not take the checkpoint of this run for that of another.
    processes.wait()
    _make(folder)
    if processes.is_first:
        _tell(run)
    run.train()
    return run.report()


def _tell(run: Run) -> None:
    train_labels, query = run.benchmark.train.labels, run.benchmark.query
    alone = f", {run.sampler.left_out} of a single image left out" if run.sampler.left_out else ""
    print(
        f"{run.benchmark.name}: trains on {len(train_labels)} images of {len(set(train_labels))} "
        f"classes{alone}; retrieves {len(query.labels)} of {len(set(query.labels))} others"
    )
    if (other := other_than_released(run.benchmark)) is not None:
        print(other)
    kernels = ms_kernels.backends()["cpu"]
    if run.processes.device.type == "cpu" and not kernels.available:
        print(f"the loss goes by plain PyTorch, for the kernels are not built here: {kernels.note}")
    numbers = sum(p.numel() for p in run.model.parameters())
    print(
        f"{run.options.backbone}, {numbers / 1e6:.1f} million parameters, on {run.processes.device}"
        f", {run.processes.world} process{'es' if run.processes.world > 1 else ''}"
    )
    print(f"pixels are {run.model.normalisation}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"--output: expected a folder that can be made, got {error}") from error
