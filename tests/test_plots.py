"""The plots: what they draw is what the rules say, in the Axes given, without pyplot."""

import subprocess
import sys

import pytest
import torch

pytest.importorskip("matplotlib")

from cases import SPECS, make_batch
from family import MININGS, name_of
from matplotlib.figure import Figure

from ms_kernels import (
    BinomialDeviance,
    Contrastive,
    Mining,
    MultiSimilarityLoss,
    MultiSimilarityMining,
    NoMining,
    PairLoss,
    TopKMining,
    __main__,
    mined_pairs,
    options,
    reference,
    row_statistics,
)
from ms_kernels.rules.spec import WEIGHTINGS
from ms_kernels.tools import plots


def curves(axes):
    return {
        line.get_label(): line.get_xydata() for line in axes.lines if line.get_label()[0] != "_"
    }


def test_weight_curves_are_the_weights():
    losses = {"step": Contrastive(1.0, 0.501), "smooth": BinomialDeviance(beta=20)}
    figure = plots.weight_curves(losses, positives=[0.7], negatives=[])
    left, right = figure.axes
    assert list(curves(left)) == list(curves(right)) == ["step", "smooth"]
    s, weight = torch.tensor(curves(right)["smooth"]).T
    want = torch.sigmoid(20 * (s - 0.5))
    torch.testing.assert_close(weight, want / want.max())
    s, weight = torch.tensor(curves(right)["step"]).T
    assert torch.equal(weight, (s > 0.501).double())
    s, weight = torch.tensor(curves(left)["smooth"]).T
    want = torch.sigmoid(2 * (0.5 - s))
    torch.testing.assert_close(weight, want / want.max())


def test_every_rule_has_a_curve_and_mining_acts():
    figure = plots.weight_curves()
    assert set(curves(figure.axes[0])) == {rule.__name__ for rule in WEIGHTINGS}
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == len(WEIGHTINGS) + 1  # and the axis at 0
    for axes in figure.axes:
        for label, line in curves(axes).items():
            assert line[:, 1].max() == pytest.approx(1), label
    mined = PairLoss(Contrastive(1.0, 0.1), MultiSimilarityMining(0.1))
    figure = plots.weight_curves([mined, MultiSimilarityLoss(epsilon=None)])
    left, right = figure.axes
    assert list(curves(left)) == ["Contrastive + MultiSimilarityMining", "MultiSimilarity"]
    s, weight = torch.tensor(curves(right)["Contrastive + MultiSimilarityMining"]).T
    assert torch.equal(weight, (s > 0.5).double())  # hardest positive 0.6, less epsilon
    s, weight = torch.tensor(curves(left)["Contrastive + MultiSimilarityMining"]).T
    assert torch.equal(weight, (s < 0.5 + 0.1).double())


def heights(axes):
    """Percent in each bin: positives, kept ones, negatives, kept ones."""
    return [
        torch.tensor(patch.get_data().values)
        for patch in axes.patches
        if hasattr(patch, "get_data")
    ]


@pytest.mark.parametrize("panel_bytes", [1, 40_000, 16 << 20])
@pytest.mark.parametrize("rule", MININGS, ids=name_of)
def test_histogram_counts_the_pairs(rule, panel_bytes, monkeypatch):
    monkeypatch.setattr(options, "_panel_bytes", panel_bytes)
    x, y = make_batch(97, None, 64, SPECS["default"], torch.float64)[:2]
    sim, *every = reference.labelled_similarities(
        *(x, y, None, None), ids=None, ref_ids=None, max_positive_similarity=None, normalize=True
    )
    pairs = mined_pairs(x, y, mining=rule)
    figure = plots.similarity_histogram(x, y, rule)
    found = heights(figure.axes[0])
    for k, mask in enumerate(every):
        kept = sim[pairs[2 * k], pairs[2 * k + 1]]
        for got, values in ((found[2 * k], sim[mask]), (found[2 * k + 1], kept)):
            want = torch.histc(values, plots.BINS, -1, 1) * 100 / mask.sum()
            torch.testing.assert_close(got, want)


def test_histogram_draws_the_thresholds():
    x, y = make_batch(97, None, 64, SPECS["default"], torch.float64)[:2]
    stats = reference.row_statistics(x, y)
    axes = plots.similarity_histogram(x, y).axes[0]
    drawn = {label: line[0, 0] for label, line in curves(axes).items()}
    below, above = drawn.items()
    for (label, place), word, values in (
        (below, "kept below", stats.hardest_negative + 0.1),
        (above, "kept above", stats.hardest_positive[stats.hardest_positive.isfinite()] - 0.1),
    ):
        assert label.startswith(word) and place == pytest.approx(values.median().item(), abs=0.01)
    assert not curves(plots.similarity_histogram(x, y, NoMining()).axes[0])
    ((label, line),) = curves(plots.similarity_histogram(x, y, TopKMining(5)).axes[0]).items()
    fifth = row_statistics(x, y, mining=TopKMining(5)).hardest_negative
    assert label.startswith("kept above")
    assert line[0, 0] == pytest.approx(fifth.median().item(), abs=0.01)

    class Mine(Mining):
        def keep(self, similarity, positive, negative):
            return positive, negative & (similarity > 0.2)

    assert "Mine keeps" in plots.similarity_histogram(x, y, Mine()).axes[0].get_title()


@pytest.mark.parametrize("labels", [[], [0], [0, 0], [0, 1]], ids=str)
@pytest.mark.parametrize("rule", MININGS, ids=name_of)
def test_histogram_of_little(labels, rule, tmp_path):
    y = torch.tensor(labels, dtype=torch.int64)
    figure = plots.similarity_histogram(torch.ones(len(y), 2).bfloat16(), y, rule)
    figure.savefig(tmp_path / "little.png")
    # All similarities are 1: of what there is, everything lies in the last bin, and is kept there.
    kept = mined_pairs(torch.ones(len(y), 2), y, mining=rule)
    every = mined_pairs(torch.ones(len(y), 2), y, mining=NoMining())
    for k, part in enumerate(heights(figure.axes[0])):
        pairs, all_pairs = (kept if k % 2 else every)[k // 2 * 2], every[k // 2 * 2]
        assert part[-1] == pytest.approx(100 * len(pairs) / max(1, len(all_pairs)))
        assert not part[:-1].any()
    _, texts = figure.axes[0].get_legend_handles_labels()
    for word, pairs in zip(("positive", "negative"), every[::2], strict=True):
        assert f"{word} pairs: {len(pairs)}" in texts


def test_mined_share():
    figure = plots.mined_share([1.0, 0.5, 0.25])
    (line,) = figure.axes[0].lines
    assert line.get_xydata().tolist() == [[1, 100], [2, 50], [3, 25]]
    runs = {"a": [k / 100 for k in range(100)], "b": [1.0] * 30, "c": []}
    axes = plots.mined_share(runs).axes[0]
    smooth = curves(axes)
    assert list(smooth) == ["a", "b", "c"] and not len(smooth["c"])
    assert smooth["a"][0].tolist() == [10, pytest.approx(4.5)]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b", "c"]
    assert not plots.mined_share([]).axes[0].lines[0].get_xdata().size


def test_axes_given_are_drawn_into(tmp_path):
    figure = Figure()
    parts = figure.subfigures(2, 1)
    upper, (left, right) = parts[0].subplots(1, 2), parts[1].subplots(1, 2)
    x, y = make_batch(97, None, 64, SPECS["default"], torch.float32)[:2]
    assert plots.weight_curves([Contrastive()], upper) is figure
    assert plots.similarity_histogram(x, y, ax=left) is figure
    assert plots.mined_share([0.5], ax=right) is figure
    for axes in figure.axes:
        assert axes.get_xlabel() and axes.get_title()
    figure.savefig(tmp_path / "all.svg")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, y: plots.weight_curves(ax=Figure().subplots()), ValueError, "expected two Axes"),
        (lambda x, y: plots.weight_curves([Contrastive]), TypeError, r"use Contrastive\(\)"),
        (lambda x, y: plots.similarity_histogram(x, y, 0.1), TypeError, "mining: .*got 0.1"),
        (lambda x, y: plots.similarity_histogram(x, y[:2]), ValueError, "labels: expected shape"),
        (lambda x, y: plots.similarity_histogram(x / 0, y), ValueError, "finite numbers, got inf"),
        (lambda x, y: plots.mined_share([0.2, 40]), ValueError, "history: .* to 1, got 40"),
        (lambda x, y: plots.mined_share({"a": [-1]}), ValueError, r"history\['a'\]: .*got -1"),
        (lambda x, y: plots.mined_share([1], ax="a"), TypeError, "ax: expected Axes.*got str"),
    ],
)
def test_errors_name_got_and_wanted(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.ones(3, 2), torch.arange(3))


def test_no_pyplot_and_a_clear_message_without_matplotlib():
    code = "import sys; import ms_kernels.tools.plots; print('matplotlib.pyplot' in sys.modules)"
    run = {"check": True, "capture_output": True, "text": True}
    assert subprocess.run([sys.executable, "-c", code], **run).stdout == "False\n"
    code = """
import sys
sys.modules["matplotlib"] = None
import ms_kernels
try:
    import ms_kernels.tools.plots
except ImportError as error:
    print(error)
"""
    shown = subprocess.run([sys.executable, "-c", code], **run).stdout
    assert "ms_kernels.tools.plots needs matplotlib" in shown and "pip install matplotlib" in shown


def test_explain(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    target = tmp_path / "explain.png"
    command = [sys.executable, "-m", "ms_kernels", "explain", "--steps", "3", "--output"]
    shown = subprocess.run([*command, target], check=True, capture_output=True, text=True).stdout
    assert "Look at" in shown and f"Picture: {target}" in shown
    assert target.read_bytes().startswith(b"\x89PNG") and target.stat().st_size > 50_000
    missing = tmp_path / "missing" / "explain.png"
    monkeypatch.setattr(sys, "argv", [*map(str, command[2:]), str(missing)])
    with pytest.raises(SystemExit, match="--output: expected a file in a folder that"):
        __main__.main()
