"""The demo runs, its curves agree, its picture is a picture."""

import sys

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def test_demo(tmp_path, monkeypatch, capsys):
    from ms_kernels.__main__ import main
    from ms_kernels.tools import demo

    monkeypatch.setattr(demo, "MEASURED", ((200, 32),))
    target = tmp_path / "demo.png"
    arguments = ["ms_kernels", "demo", "--steps", "4", "--output", str(target)]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    shown = capsys.readouterr().out
    for line in ("largest difference of the curves", "Recall@1 trained", "peak memory"):
        assert line in shown
    assert "DIFFERENT" not in shown
    assert target.read_bytes().startswith(b"\x89PNG") and target.stat().st_size > 20_000


def test_demo_fails_when_the_curves_differ(tmp_path, monkeypatch):
    from ms_kernels.tools import demo

    monkeypatch.setattr(demo, "TOLERANCE", -1.0)
    monkeypatch.setattr(demo, "measure", lambda *_: {"milliseconds": 1.0, "peak_bytes": 2**20})
    with pytest.raises(SystemExit, match="the two loss curves differ by"):
        demo.run(1, str(tmp_path / "demo.png"))
