"""The family's bench on a GPU, without one."""

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("pytorch_metric_learning")
pytest.importorskip("ms_kernels._cpu")

from bench import family, gpu_family  # noqa: E402
from bench.gpu_record import read  # noqa: E402

pytestmark = pytest.mark.usefixtures("stand_in")


@pytest.mark.parametrize("flaw", ["gradient", "nan"])
def test_wrong_gradients_are_seen(flaw):
    member = family.members()["SupCon"]
    x, y = family.make_batch(32)
    exact = gpu_family.step_of(member.on("panels"), x.double(), y)()

    def flawed(x, y):
        loss = member.ours(x, y)
        if flaw == "gradient":
            return loss + (loss.detach() - loss)
        return loss + 0 * (x - x.detach()).sqrt().sum()  # 0 times infinite slopes

    assert gpu_family.distance(member.ours, exact, x, y) < 1e-4
    assert flawed(x, y) == member.ours(x, y)
    assert not gpu_family.distance(flawed, exact, x, y) <= gpu_family.LOOSE


def test_every_case_is_written(tmp_path, monkeypatch, capsys):
    chosen = ("MultiSimilarity", "NPair", "Histogram")
    members = {name: family.members()[name] for name in chosen}
    members["Histogram"] = members["Histogram"]._replace(peer=lambda x, y: x.sum())
    monkeypatch.setattr(gpu_family, "members", lambda: members)
    monkeypatch.setattr(gpu_family, "unfit", lambda: None)
    monkeypatch.setattr(gpu_family, "BACKENDS", ("panels",))
    path = tmp_path / "r.jsonl"
    assert gpu_family.main(["--sizes", "32", "--results", str(path)]) == 0
    cases = [case for case in read(path) if case["kind"] == "family"]
    assert [case["member"] for case in cases] == list(chosen)
    for case in cases:
        assert case["candidates"]["ours"]["ratio"] == 1 and case["errors"]["ours"] < 1e-4
    assert "off by" in cases[2]["candidates"]["metric_learning"]["why"]  # not timed
    assert "gpu" in cases[0]["candidates"]["metric_learning"]
    assert "| NPair | 32 |" in capsys.readouterr().out
