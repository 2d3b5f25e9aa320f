"""The demo runs, its curves agree, its picture is a picture."""

import sys

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def test_demo(tmp_path, monkeypatch, capsys):
    from ms_kernels.__main__ import main
    from ms_kernels.tools import demo

    monkeypatch.setattr(demo, "MEASURED", (200,))
    target = tmp_path / "demo.png"
    arguments = ["ms_kernels", "demo", "--steps", "4", "--output", str(target)]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    shown = capsys.readouterr().out
    for line in (
        "largest difference of the curves",
        "Recall@1 trained",
        "peak (MiB)",
        "workspace_bytes",
    ):
        assert line in shown
    assert "DIFFERENT" not in shown
    assert target.read_bytes().startswith(b"\x89PNG") and target.stat().st_size > 20_000


def test_demo_fails_when_the_curves_differ(tmp_path, monkeypatch):
    """And draws them before; the map, which takes longest, is test_demo's."""
    from ms_kernels.tools import demo, demo_plot

    monkeypatch.setattr(demo, "TOLERANCE", -1.0)
    monkeypatch.setattr(demo_plot, "_map", lambda *_: None)
    monkeypatch.setattr(demo, "measure", lambda *_: {"milliseconds": 1.0, "peak_bytes": None})
    with pytest.raises(SystemExit, match="the two loss curves differ by"):
        demo.run(1, str(tmp_path / "demo.png"))
    assert (tmp_path / "demo.png").stat().st_size > 20_000


@pytest.mark.parametrize(
    ("peaks", "shown"),
    [
        ({"cpu": 2**20 - 1, "reference": 0}, ["< 1", "< 1"]),
        ({"cpu": 3 << 20, "reference": 44 << 20}, ["3", "44"]),
        ({"cpu": None, "reference": None}, []),  # where nobody tells
    ],
)
def test_a_table_says_what_a_step_costs(monkeypatch, capsys, peaks, shown):
    from ms_kernels.tools import demo

    def measure(name, n, d, steps):
        return {"milliseconds": {"cpu": 0.5, "reference": 4.0}[name], "peak_bytes": peaks[name]}

    monkeypatch.setattr(demo, "measure", measure)
    monkeypatch.setattr(demo, "MEASURED", (256, 4096))
    costs = demo.print_costs("cpu")
    assert [cost.n for cost in costs] == [256, 4096]
    row = " ".join(capsys.readouterr().out.splitlines()[3].split())
    assert row == " ".join(["256", "0.50", "4.00", "8.0x", *shown])


def test_the_picture_shows_time_and_memory_of_each_size():
    from matplotlib.figure import Figure

    from ms_kernels.tools import demo, demo_plot

    costs = [
        demo.Cost(256, (0.6, 3.4), (0, 2**19)),
        demo.Cost(1024, (4.2, 60), (3 << 20, 44 << 20)),
    ]
    time, memory = Figure().subplots(1, 2)
    demo_plot.draw_costs(time, memory, costs)
    assert lines_of(time) == {"fused": [(256, 0.6), (1024, 4.2)], "dense": [(256, 3.4), (1024, 60)]}
    assert lines_of(memory) == {"fused": [(1024, 3)], "dense": [(1024, 44)]}


def lines_of(axes):
    return {line.get_label(): list(map(tuple, line.get_xydata().tolist())) for line in axes.lines}
