"""docs/migration.md: each snippet runs, and equals what its users had before."""

import re
from pathlib import Path

import pytest
import ranks
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy, normalize, softplus

import ms_kernels
from ms_kernels.compat.sentence_transformers import (
    MultipleNegativesRankingLoss,
    MultipleNegativesSymmetricRankingLoss,
)
from ms_kernels.distributed import gather_rows

PAGE = (Path(__file__).parent.parent / "docs" / "migration.md").read_text()


def ran(name, number=0, **given):
    """The snippet of that number under a heading."""
    parts = re.split(r"^## (.*)$", PAGE, flags=re.M)[1:]
    text = dict(zip(parts[::2], parts[1::2], strict=True))[name]
    scope = {"torch": torch, "ms_kernels": ms_kernels, **given}
    exec(re.findall(r"```python\n(.*?)```", text, re.S)[number], scope)
    return scope


def rows(n, d=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64, requires_grad=True)


def same(got, want, *leaves):
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(loss, leaves) for loss in (got, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


def ranked(query, *documents, scale=20.0):
    scores = scale * normalize(query) @ normalize(torch.cat(documents)).T
    return cross_entropy(scores, torch.arange(len(query)))


@pytest.mark.parametrize("negatives", [0, 1, 2])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_multiple_negatives(negatives, backend):
    columns = [rows(24, seed=k) for k in range(2 + negatives)]

    class Model(torch.nn.Module):
        def forward(self, features):
            return {"sentence_embedding": features["x"]}

    features = [{"x": x} for x in columns]
    loss = MultipleNegativesRankingLoss(Model(), backend=backend)
    same(loss(features, torch.zeros(24)), ranked(*columns), *columns)
    both = MultipleNegativesSymmetricRankingLoss(Model(), scale=7.0, backend=backend)
    want = ranked(*columns, scale=7.0) + ranked(columns[1], columns[0], scale=7.0)
    same(both(features, None), want / 2, *columns)
    assert both.get_config_dict()["directions"] == ("query_to_doc", "doc_to_query")


def test_queries_that_are_their_own_documents():
    query, negative = rows(9), rows(9, seed=1)
    loss = MultipleNegativesSymmetricRankingLoss(torch.nn.Identity())
    want = (ranked(query, query, negative) + ranked(query, query)) / 2
    same(loss.compute_loss_from_embeddings([query, query, negative]), want, query, negative)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": ("doc_to_doc",)}, r"expected \('query_to_doc',\).*own class has the rest"),
        ({"directions": ("query_to_doc", "doc_to_query")}, "with 'per_direction', got"),
        ({"scale": 0}, "scale: expected a finite number above 0, got 0"),
    ],
)
def test_what_ranking_does_not_serve(options, message):
    with pytest.raises(ValueError, match=message):
        MultipleNegativesRankingLoss(torch.nn.Identity(), **options)
    with pytest.raises(TypeError, match="got similarity_fct; sentence-transformers' own class"):
        MultipleNegativesRankingLoss(torch.nn.Identity(), similarity_fct=torch.dot)
    loss = MultipleNegativesRankingLoss(torch.nn.Identity())
    with pytest.raises(ValueError, match="embeddings: expected queries and their documents"):
        loss.compute_loss_from_embeddings([rows(3)])


@pytest.mark.parametrize(
    "kind", [MultipleNegativesRankingLoss, MultipleNegativesSymmetricRankingLoss]
)
def test_columns_are_named_by_what_they_hold(kind):
    loss = kind(torch.nn.Identity())
    for documents in (4, 8):
        got = f"got 6 queries in column 0 and {documents} documents in column 1; documents of no"
        with pytest.raises(ValueError, match=f"embeddings: .* for each query, {got}"):
            loss.compute_loss_from_embeddings([rows(6), rows(documents)])
    with pytest.raises(ValueError, match=r"column 0 and \(5, 2\) in column 2"):
        loss.compute_loss_from_embeddings([rows(6), rows(6), rows(5)[:, :2]])
    with pytest.raises(ValueError, match=r"\(6,\) in column 1"):
        loss.compute_loss_from_embeddings([rows(6), rows(6)[:, 0]])
    assert loss.compute_loss_from_embeddings([rows(6), rows(6), rows(5)]) > 0


def test_sentence_transformers():
    query, document, negative = (rows(12, seed=k) for k in range(3))
    scope = ran("sentence-transformers", model=torch.nn.Identity())
    loss = scope["loss"].compute_loss_from_embeddings([query, document, negative])
    same(loss, ranked(query, document, negative), query, document, negative)


def test_place_recognition():
    descriptors, places = rows(60), torch.arange(60) // 4
    scope = ran("Place recognition", descriptors=descriptors, places=places)
    want = ms_kernels.reference.multi_similarity_loss(
        descriptors, places, alpha=1.0, beta=50.0, base=0.0
    )
    same(scope["loss"], want, descriptors)
    pairs = ms_kernels.mined_pairs(descriptors, places)
    mined = torch.cat([pairs[0], pairs[2]]).unique().numel()
    assert scope["batch_accuracy"] == pytest.approx(1 - mined / 60)


def test_re_identification():
    features, identities = rows(48), torch.arange(48) // 4
    centres = rows(12, seed=1)
    given = {"features": features, "identities": identities, "centres": centres}
    scope = ran("Person re-identification", **given)
    distance = torch.cdist(features, features)
    same_id = identities[:, None] == identities
    furthest = distance.masked_fill(~same_id, 0).amax(1)
    nearest = distance.masked_fill(same_id, torch.inf).amin(1)
    same(scope["hinge"], (furthest - nearest + 0.3).clamp(min=0).mean(), features)
    distance = torch.cdist(features, features)
    furthest = distance.masked_fill(~same_id, 0).amax(1)
    nearest = distance.masked_fill(same_id, torch.inf).amin(1)
    soft = softplus(furthest - nearest).mean()
    torch.testing.assert_close(scope["soft"], soft, rtol=1e-10, atol=0)
    apart = torch.stack([features[i] - centres[k] for i, k in enumerate(identities)])
    same(scope["loss"], soft + 5e-4 * (apart**2).sum() / 48, features, centres)


def test_the_released_code():
    embeddings, labels = rows(40), torch.arange(40) // 4
    scope = ran("The released code of the paper", embeddings=embeddings, labels=labels)
    want = ms_kernels.reference.multi_similarity_loss(
        embeddings, labels, alpha=2.0, beta=40.0, max_positive_similarity=1 - 1e-5
    )
    same(scope["loss"], want, embeddings)


class Encoders(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = (torch.nn.Parameter(rows(16, 7, seed).detach()) for seed in (5, 6))
        self.log_scale, self.bias = (
            torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (2.0, -3.0)
        )

    def forward(self, image, text):
        return image @ self.image, text @ self.text, 1 * self.log_scale, 1 * self.bias


def both_losses(model, image, text):
    """Of CLIP and of SigLIP, by the snippet."""
    image, text, log_scale, bias = model(image, text)
    losses = {name: getattr(ms_kernels, name) for name in ("clip_loss", "siglip_loss")}
    given = {"image": image, "text": text, "log_scale": log_scale, "bias": bias, **losses}
    scope = ran("CLIP and SigLIP", 1, **given)
    return scope["clip_everywhere"] + 3 * scope["siglip_everywhere"]


SPLIT = [7, 4]  # rows of each process


def everywhere(rank, world, folder):
    with ranks.joined(rank, world, folder):
        model = torch.nn.parallel.DistributedDataParallel(Encoders())
        sides = (x.detach().split(SPLIT)[rank] for x in (rows(11), rows(11, seed=1)))
        loss = both_losses(model, *sides)
        loss.backward()
        found = [loss.detach(), *(p.grad for p in model.parameters())]
        refused = []
        for given in (rows(3, 4 + rank), rows(3)[:, 0] if rank else rows(3)):
            try:
                gather_rows(given)
            except (RuntimeError, ValueError) as error:
                refused.append(str(error))
        torch.save((found, refused), f"{folder}/{rank}.pt")


@pytest.mark.skipif(not dist.is_available(), reason="torch without processes")
def test_images_and_texts_of_two_processes(tmp_path):
    model = Encoders()
    want = both_losses(model, rows(11).detach(), rows(11, seed=1).detach())
    want.backward()
    exact = [want.detach(), *(p.grad for p in model.parameters())]
    for found, refused in ranks.run(2, tmp_path, everywhere):
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-13)
        width, shape = refused
        assert re.match(
            r"rows: expected the same on every rank, got shape \(n, 4\) of .* rank 1", width
        )
        assert shape == (
            "gather_rows: rank 1: ValueError: rows: expected a tensor of shape (n, D), got (3,)"
        )


def test_one_process_has_its_own_rows():
    x = rows(4)
    assert gather_rows(x) is x


def test_images_and_texts():
    image, text = rows(20), rows(20, seed=1)
    log_scale, bias = (
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.0, -3.0)
    )
    given = {"image": image, "text": text, "log_scale": log_scale, "bias": bias}
    scope = ran("CLIP and SigLIP", **given)
    z = log_scale.exp() * normalize(image) @ normalize(text).T
    own = torch.arange(20)
    want = (cross_entropy(z, own) + cross_entropy(z.T, own)) / 2
    same(scope["clip"], want, image, text, log_scale)
    z = log_scale.exp() * normalize(image) @ normalize(text).T + bias
    want = softplus(-(2 * torch.eye(20, dtype=z.dtype) - 1) * z).sum() / 20
    same(scope["siglip"], want, image, text, log_scale, bias)
