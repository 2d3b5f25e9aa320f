"""Embeddings of the test images, and how well they retrieve."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from examples.retrieval.images import MARGIN, Decoded, Images, TestChange, seeded
from examples.retrieval.layouts import Benchmark
from examples.retrieval.model import Embedder
from examples.retrieval.options import Options
from examples.retrieval.processes import Processes
from examples.retrieval.refusal import Refusal
from examples.retrieval.stopping import leave_signals
from ms_kernels.retrieval import RetrievalScores, retrieval_scores


class Embedded(NamedTuple):
    """Rows of the test images; gallery None where the queries are retrieved by each other.

    groups: of the queries; images of the query's group are no candidates. None where each leaves
    out itself alone.
    """

    query: Tensor
    labels: Tensor
    gallery: Tensor | None
    gallery_labels: Tensor | None
    groups: Tensor | None


def ks_of(options: Options, benchmark: Benchmark) -> tuple[int, ...]:
    """The K of Recall@K: those asked for, which must be there, or those of the literature."""
    gallery = benchmark.gallery or benchmark.query
    most = len(gallery.labels) - (benchmark.gallery is None)
    ks = options.ks or tuple(k for k in benchmark.ks if k <= most)
    wrong = [k for k in ks if not 1 <= k <= most]
    if wrong or most < 1:
        raise Refusal(
            f"--ks: expected numbers from 1 to {most}, as many as a query can find in "
            f"{benchmark.name}, got {', '.join(map(str, wrong or ks))}"
        )
    return ks


def embed_all(
    model: Embedder, benchmark: Benchmark, options: Options, processes: Processes
) -> Embedded:
    def labels_of(images: Images) -> Tensor:
        return torch.tensor(images.labels, dtype=torch.int64, device=processes.device)

    margin = MARGIN if benchmark.channels == 3 else 1.0
    query = embed(model, benchmark.query, margin, options, processes)
    groups = getattr(benchmark.query, "groups", None)
    if groups is not None:
        groups = torch.tensor(groups, device=processes.device)
    if benchmark.gallery is None:
        return Embedded(query, labels_of(benchmark.query), None, None, groups)
    gallery = embed(model, benchmark.gallery, margin, options, processes)
    return Embedded(
        query, labels_of(benchmark.query), gallery, labels_of(benchmark.gallery), groups
    )


@torch.no_grad()
def embed(
    model: Embedder, images: Images, margin: float, options: Options, processes: Processes
) -> Tensor:
    """(N, D) rows in the order of the images; each process embeds its part of them."""
    data = Decoded(images, model.normalisation, TestChange(options.size, margin))
    n = len(data)
    # Whole batches, cut alike for any number of processes: rows do not depend on who embeds them.
    starts = range(0, n, options.test_batch)
    batches = [list(range(s, min(s + options.test_batch, n))) for s in starts]
    mine = batches[processes.rank :: processes.world]
    # Its generator is its own: an evaluation leaves the training's chance as it was.
    loader: Any = torch.utils.data.DataLoader(
        data,
        batch_sampler=mine,
        num_workers=options.workers,
        worker_init_fn=leave_signals,
        generator=seeded("embedding"),
    )
    was_training = model.training
    model.eval()
    rows = torch.zeros(n, options.dim, device=processes.device)
    bar = tqdm(
        zip(mine, loader, strict=True),
        total=len(mine),
        desc="embedding",
        unit="batch",
        disable=None if processes.is_first else True,
    )
    failure = None
    try:
        for indices, x in bar:
            with torch.autocast(processes.device.type, torch.bfloat16, enabled=options.amp):
                found = model(x.to(processes.device, non_blocking=True))
            rows[indices[0] : indices[-1] + 1] = found.float()
    except Exception as error:
        failure = error
    model.train(was_training)
    # The others would wait for the rows of the one that has failed.
    if processes.any(failure is not None):
        text = processes.told(failure)
        raise Refusal(text) if failure is None or isinstance(failure, Refusal) else failure
    return processes.summed(rows)


def scores_of(embedded: Embedded, ks: tuple[int, ...]) -> RetrievalScores:
    query, labels, gallery, gallery_labels, groups = embedded
    ids = None if gallery is not None else groups
    return retrieval_scores(query, labels, gallery, gallery_labels, ks=ks, ids=ids)
