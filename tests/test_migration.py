"""docs/migration.md: each snippet runs, and equals what its users had before."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize, softplus

import ms_kernels
from ms_kernels.compat.sentence_transformers import (
    MultipleNegativesRankingLoss,
    MultipleNegativesSymmetricRankingLoss,
)

PAGE = (Path(__file__).parent.parent / "docs" / "migration.md").read_text()


def snippets():
    """By the heading that they stand under."""
    parts = re.split(r"^## (.*)$", PAGE, flags=re.M)[1:]
    return {
        name: "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    }


def ran(name, **given):
    scope = {"torch": torch, "ms_kernels": ms_kernels, **given}
    exec(snippets()[name], scope)
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
    scope = ran("Person re-identification", features=features, identities=identities)
    distance = torch.cdist(features, features)
    same_id = identities[:, None] == identities
    furthest = distance.masked_fill(~same_id, 0).amax(1)
    nearest = distance.masked_fill(same_id, torch.inf).amin(1)
    same(scope["hinge"], (furthest - nearest + 0.3).clamp(min=0).mean(), features)
    distance = torch.cdist(features, features)
    furthest = distance.masked_fill(~same_id, 0).amax(1)
    nearest = distance.masked_fill(same_id, torch.inf).amin(1)
    same(scope["soft"], softplus(furthest - nearest).mean(), features)


def test_the_released_code():
    embeddings, labels = rows(40), torch.arange(40) // 4
    scope = ran("The released code of the paper", embeddings=embeddings, labels=labels)
    want = ms_kernels.reference.multi_similarity_loss(
        embeddings, labels, alpha=2.0, beta=40.0, max_positive_similarity=1 - 1e-5
    )
    same(scope["loss"], want, embeddings)


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
