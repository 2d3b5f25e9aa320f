"""Exact search and its measures: against a double loop in float64 and pytorch-metric-learning."""

import math
import re
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ms_kernels
from ms_kernels import IGNORED
from ms_kernels.retrieval import (
    map_at_r,
    nearest,
    r_precision,
    recall_at_k,
    retrieval_scores,
    search,
)


def by_loops(x, y, ref_emb=None, ref_labels=None, ids=None, ref_ids=None, ks=(1,), sim=None):
    """Recall@K, MAP@R, R-precision, queries and those without a relevant row, one at a time."""
    alone = ref_emb is None
    if alone:
        ref_emb, ref_labels = x, y
        ids = range(len(x)) if ids is None else ids.tolist()
        ref_ids = ids
    elif ids is None:
        ids, ref_ids = [0] * len(x), [1] * len(ref_emb)
    else:
        ids, ref_ids = ids.tolist(), ref_ids.tolist()
    recalls, averages, precisions, lone = [], [], [], 0
    for i in range(len(x)):
        others = [
            j
            for j in range(len(ref_emb))
            if ids[i] != ref_ids[j] and IGNORED not in (ids[i], ref_ids[j])
            if not alone or i != j
        ]
        others.sort(key=lambda j, i=i: (-sim[i][j], j))
        hits = [bool(ref_labels[j] == y[i]) for j in others]
        relevant = sum(hits)
        if relevant == 0:
            lone += 1
            continue
        recalls.append([any(hits[:k]) for k in ks])
        averages.append(
            sum(sum(hits[:r]) / r for r in range(1, relevant + 1) if hits[r - 1]) / relevant
        )
        precisions.append(sum(hits[:relevant]) / relevant)

    def mean(values):
        return sum(values) / len(values) if values else math.nan

    recall = {k: mean([row[p] for row in recalls]) for p, k in enumerate(ks)}
    return recall, mean(averages), mean(precisions), len(averages), lone


def agree(found, want):
    recall, average, precision, queries, lone = want
    assert found.recall == pytest.approx(recall, abs=1e-12, nan_ok=True)
    assert found.map_at_r == pytest.approx(average, abs=1e-12, nan_ok=True)
    assert found.r_precision == pytest.approx(precision, abs=1e-12, nan_ok=True)
    assert (found.queries, found.without_relevant) == (queries, lone)


@pytest.fixture
def small_panels(monkeypatch):
    """Panels of a few rows and columns, which must be merged."""
    monkeypatch.setattr(search, "WIDTH", 3)
    monkeypatch.setattr(ms_kernels.options, "_panel_bytes", 700)


@st.composite
def galleries(draw):
    """Rows of small integers, whose products are exact and often equal, of ragged classes."""
    n, m, d = draw(st.integers(2, 14)), draw(st.integers(3, 14)), draw(st.integers(1, 3))
    classes = draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def integers(low, high, shape):
        return torch.randint(low, high, shape, generator=generator)

    x, r = integers(-1, 2, (n, d)), integers(-1, 2, (m, d))
    y, z = integers(0, classes, (n,)), integers(0, classes, (m,)).square()
    ids, ref_ids = integers(0, 6, (n,)), integers(0, 6, (m,))
    ids[ids == 5] = ref_ids[ref_ids == 5] = IGNORED
    return x, y, r, z, ids, ref_ids


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["self", "self by ids", "gallery", "gallery by ids"])
def test_ties_and_ragged_classes(small_panels, mode, dtype):
    @given(galleries(), st.integers(1, 2))
    def check(given_rows, k):
        x, y, r, z, ids, ref_ids = given_rows
        gallery = () if mode.startswith("self") else (r.to(dtype), z)
        names = {}
        if mode.endswith("ids"):
            names = {"ids": ids, **({"ref_ids": ref_ids} if gallery else {})}
        ks = (k, 1)
        if not gallery and len(x) == 2:
            ks = (1,)
        sim = (x @ (r if gallery else x).T).tolist()
        want = by_loops(x, y, *gallery, **names, ks=ks, sim=sim)
        found = retrieval_scores(x.to(dtype), y, *gallery, **names, ks=ks, normalize=False)
        agree(found, want)
        only = recall_at_k(x.to(dtype), y, *gallery, **names, k=ks, normalize=False)
        assert only == pytest.approx(want[0], abs=1e-12, nan_ok=True)

    check()


@pytest.mark.parametrize("ids", [None, torch.tensor([0, 1, 2, 2, 3, IGNORED])])
def test_a_gallery_that_is_the_queries_is_a_gallery_as_a_copy_of_them_is(ids):
    """Only a gallery that is left out has each query leave out itself."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    same = {} if ids is None else {"ids": ids, "ref_ids": ids}
    copied = {} if ids is None else {"ids": ids, "ref_ids": ids.clone()}
    one = retrieval_scores(x, y, x, y, ks=(1, 6), **same)
    other = retrieval_scores(x, y, x.clone(), y.clone(), ks=(1, 6), **copied)
    assert (one.recall, one.queries) == (other.recall, other.queries)
    for name in one.of_queries._fields:
        mine, theirs = getattr(one.of_queries, name), getattr(other.of_queries, name)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
    for measure in (recall_at_k, map_at_r, r_precision):
        assert measure(x, y, x, y, **same) == measure(x, y, x.clone(), y, **copied)
    found = nearest(x, x, k=6, **same).indices
    assert torch.equal(found, nearest(x, x.clone(), k=6, **copied).indices)
    if ids is None:
        assert one.recall[1] == 1.0 and found[:, 0].tolist() == list(range(6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_similarities_give_the_lower_index_first(small_panels, dtype):
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=dtype)
    r = torch.tensor([[0, 1], [2, 0], [0, -1], [2, 0], [-2, 0], [0, 0], [2, 0]], dtype=dtype)
    found = nearest(x, r, k=7, normalize=False)
    assert found.indices.tolist() == [[1, 3, 6, 0, 2, 5, 4], [4, 0, 2, 5, 1, 3, 6]]
    assert found.similarities.dtype == dtype
    assert torch.equal(found.similarities, (x @ r.T).gather(1, found.indices))


@pytest.mark.parametrize("width", [400, 401, 997])
@pytest.mark.parametrize("mode", ["self", "ids", "gallery"])
@pytest.mark.parametrize("spread", [2, 1000])  # nearly all similarities equal; hardly any
def test_groups_of_columns_give_what_a_stable_sort_gives(monkeypatch, width, mode, spread):
    monkeypatch.setattr(search, "WIDTH", width)
    torch.manual_seed(6)
    x = torch.randint(-spread, spread + 1, (997, 2)).float()
    ids = torch.randint(200, (997,))
    gallery = () if mode != "gallery" else (x.flip(0).contiguous(),)
    sim = x @ (gallery[0] if gallery else x).T
    if mode == "self":
        sim.fill_diagonal_(-math.inf)
    elif mode == "ids":
        sim.masked_fill_(ids[:, None] == ids, -math.inf)
    want = sim.sort(dim=1, descending=True, stable=True)
    found = nearest(x, *gallery, k=5, ids=ids if mode == "ids" else None, normalize=False)
    assert torch.equal(found.indices, want.indices[:, :5])
    assert torch.equal(found.similarities, want.values[:, :5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [None, "euclidean", "squared_euclidean"])
@pytest.mark.parametrize("normalize", [True, False])
def test_against_a_double_loop(small_panels, dtype, distance, normalize):
    torch.manual_seed(0)
    x, y = torch.randn(40, 6, dtype=dtype), torch.randint(9, (40,))
    unit = torch.nn.functional.normalize(x.double()) if normalize else x.double()
    sim = unit @ unit.T if distance is None else -torch.cdist(unit, unit)
    want = by_loops(x, y, ks=(1, 3, 39), sim=sim.tolist())
    found = retrieval_scores(x, y, ks=(1, 3, 39), normalize=normalize, distance=distance)
    agree(found, want)
    assert found.recall[39] == 1
    options = {"normalize": normalize, "distance": distance}
    assert map_at_r(x, y, **options) == found.map_at_r
    assert r_precision(x, y, **options) == found.r_precision
    assert recall_at_k(x, y, **options) == found.recall[1]
    assert recall_at_k(x, y, k=3, **options) == found.recall[3]


@pytest.mark.parametrize("own_gallery", [False, True])
def test_against_pytorch_metric_learning(own_gallery):
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    torch.manual_seed(1)
    x, y = torch.randn(300, 16), torch.randint(90, (300,))  # some classes have one sample
    r, z = (torch.randn(200, 16), torch.randint(80, (200,))) if own_gallery else (None, None)
    calculator = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        k="max_bin_count",
        device=torch.device("cpu"),
        knn_func=CustomKNN(distances.CosineSimilarity()),
        kmeans_func=lambda *_: None,
    )
    theirs = calculator.get_accuracy(x, y, r, z)
    ours = retrieval_scores(x, y, r, z, ks=(1,))
    assert ours.without_relevant > 0
    assert ours.recall[1] == pytest.approx(theirs["precision_at_1"], abs=1e-12)
    assert ours.map_at_r == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-12)
    assert ours.r_precision == pytest.approx(theirs["r_precision"], abs=1e-12)


def test_the_size_of_panels_changes_nothing(monkeypatch):
    torch.manual_seed(2)
    # Products of integers are the same in every order of their sums.
    x, y = torch.randint(-9, 10, (120, 8)).float(), torch.randint(30, (120,))
    whole = retrieval_scores(x, y, normalize=False)
    neighbours = nearest(x, k=20, normalize=False)
    for budget, width in ((1, 1), (5000, 7), (20000, 119)):
        monkeypatch.setattr(ms_kernels.options, "_panel_bytes", budget)
        monkeypatch.setattr(search, "WIDTH", width)
        assert retrieval_scores(x, y, normalize=False)[:5] == whole[:5]
        found = nearest(x, k=20, normalize=False)
        assert torch.equal(found.indices, neighbours.indices)
        assert torch.equal(found.similarities, neighbours.similarities)


def test_no_panel_is_larger_than_its_budget(monkeypatch):
    torch.manual_seed(3)
    x, y = torch.randn(500, 8), torch.arange(500) // 5
    monkeypatch.setattr(search, "WIDTH", 64)
    monkeypatch.setattr(ms_kernels.options, "_panel_bytes", 32 * 64 * 20)
    sizes = []
    real = search.similarities
    monkeypatch.setattr(
        search, "similarities", lambda *given: sizes.append(real(*given).shape) or real(*given)
    )
    retrieval_scores(x, y, ks=(1,))
    assert max(rows * columns for rows, columns in sizes) <= 64 * 20
    assert sum(rows * columns for rows, columns in sizes) == 500 * 500


def test_a_copy_of_the_query_is_found_and_itself_is_not():
    x = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    assert nearest(x, k=2).indices.tolist() == [[1, 2], [0, 2], [0, 1]]
    # By ids the first two are one sample: nobody else is left of its class.
    found = retrieval_scores(x, torch.tensor([0, 0, 0]), ks=(1,), ids=torch.tensor([7, 7, 8]))
    assert found.of_queries.relevant.tolist() == [1, 1, 2]
    assert nearest(x, k=2, ids=torch.tensor([7, 7, 8])).indices.tolist() == [
        [2, -1],
        [2, -1],
        [0, 1],
    ]


def test_queries_without_a_relevant_row_are_counted_and_left_out():
    x, y = torch.eye(3), torch.tensor([0, 1, 0])
    found = retrieval_scores(x, y, ks=(1, 2))
    assert (found.queries, found.without_relevant) == (2, 1)
    assert found.recall == {1: 0.5, 2: 1.0}  # of ties the lower index first
    assert found.of_queries.relevant.tolist() == [1, 0, 1]
    assert found.of_queries.average_precision.isnan().tolist() == [False, True, False]
    nothing = retrieval_scores(x, torch.arange(3), ks=(1,))
    assert (nothing.queries, nothing.without_relevant) == (0, 3)
    assert all(math.isnan(v) for v in (nothing.recall[1], nothing.map_at_r, nothing.r_precision))
    empty = retrieval_scores(x[:0], y[:0], x, y, ks=(1,))
    assert empty.queries == 0 and math.isnan(empty.map_at_r)
    assert nearest(x[:0], x, k=2).indices.shape == (0, 2)


def test_scores_of_each_query_have_the_means():
    torch.manual_seed(4)
    x, y = torch.randn(60, 5), torch.randint(25, (60,))
    found = retrieval_scores(x, y, ks=(1, 5))
    each = found.of_queries
    assert each.average_precision.nanmean().item() == pytest.approx(found.map_at_r, abs=1e-12)
    assert each.r_precision.nanmean().item() == pytest.approx(found.r_precision, abs=1e-12)
    counts = each.relevant > 0
    hit = (each.first[counts] > 0) & (each.first[counts] <= 5)
    assert hit.double().mean().item() == pytest.approx(found.recall[5], abs=1e-12)


def test_gradients_autocast_and_inference_do_not_matter():
    torch.manual_seed(5)
    x, y = torch.randn(30, 4), torch.arange(30) // 3
    want = retrieval_scores(x, y)[:5]
    with torch.autocast("cpu", torch.bfloat16):
        assert retrieval_scores(x.clone().requires_grad_(), y)[:5] == want
    with torch.inference_mode():
        assert retrieval_scores(x, y)[:5] == want


def test_products_out_of_range_have_an_order():
    x = torch.tensor([[1e30, -1e30]])
    r = torch.tensor([[1e30, 1e30], [0.0, 0], [1e30, 0], [-1e30, 0]])
    found = nearest(x, r, k=4, normalize=False)  # inf - inf, 0, inf, -inf
    assert sorted(found.indices[0].tolist()) == [0, 1, 2, 3]
    assert found.indices[0, 0] == 2 and found.similarities.isfinite().all()


X, Y = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
WRONG = {
    "ks: expected a whole number of neighbours from 1 to 3, got 4; the gallery has 4 rows, one of "
    "which is the query": lambda: retrieval_scores(X, Y, ks=(1, 4)),
    "k: expected a whole number of neighbours from 1 to 4, got 5; the gallery has 4 rows": (
        lambda: nearest(X, X.clone(), k=5)
    ),
    "k: expected a whole number of neighbours from 1 to 3, got 0": lambda: recall_at_k(X, Y, k=0),
    "k: expected a whole number of neighbours from 1 to 3, got True": (
        lambda: recall_at_k(X, Y, k=True)
    ),
    "ks: expected whole numbers, such as (1, 10), got 3": lambda: retrieval_scores(X, Y, ks=3),
    "embeddings: expected at least 2 rows, one to be found by another, got 1": (
        lambda: recall_at_k(X[:1], Y[:1])
    ),
    "ref_emb: expected rows, got 0": lambda: recall_at_k(X, Y, X[:0], Y[:0]),
    "labels: expected shape (4,) to match embeddings (4, 3), got (3,)": (
        lambda: map_at_r(X, Y[:3])
    ),
    "labels: expected shape (4,), one label a row, got sets of labels (4, 2)": (
        lambda: r_precision(X, torch.ones(4, 2, dtype=torch.bool))
    ),
    "embeddings: expected finite numbers, got 1 of 4 rows with NaN or infinity, the first at 2": (
        lambda: recall_at_k(X.index_fill(0, torch.tensor(2), math.nan), Y)
    ),
    "ref_emb: expected finite numbers, got 4 of 4 rows": lambda: nearest(X, X / 0, k=1),
    "ref_labels: expected a tensor because ref_emb was given": lambda: recall_at_k(X, Y, X),
    "ref_ids: expected a tensor because ids was given": lambda: nearest(X, X * 2, k=1, ids=Y),
    "distance: expected one of None": lambda: nearest(X, k=1, distance="cosine"),
    "normalize: expected True or False": lambda: nearest(X, k=1, normalize=1),
    "progress: expected True, False or None, got 'yes'": lambda: nearest(X, k=1, progress="yes"),
    "embeddings: expected a tensor, got list": lambda: nearest([[1.0]], k=1),
    "embeddings: expected shape (N, D), got (4,)": lambda: nearest(X[:, 0], k=1),
}


@pytest.mark.parametrize("message", WRONG)
def test_errors(message):
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(message)):
        WRONG[message]()


def test_a_bar_if_asked_for(capsys, monkeypatch):
    pytest.importorskip("tqdm")
    nearest(X, k=1)
    assert capsys.readouterr().err == ""
    nearest(X, k=1, progress=True)
    assert "4/4" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert nearest(X, k=1).indices.shape == (4, 1)
    with pytest.raises(ImportError, match="progress: expected tqdm .* pip install tqdm"):
        nearest(X, k=1, progress=True)
