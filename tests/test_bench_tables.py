"""README's and docs' tables and plots are what the committed results make: `make tables`."""

import json
import shutil

import pytest

pytest.importorskip("matplotlib")

from bench import report, tables  # noqa: E402
from bench.cases import REGIMES  # noqa: E402
from bench.gpu_record import SAME, Record  # noqa: E402


def made_up(n, d, regime):
    def times(scale):
        return {"forward": scale, "backward": scale, "step": 2 * scale, "ratio": scale / 1e-3}

    names = ("ours", "dense", "compiled", "metric_learning", "row_loop")
    candidates = {name: times(1e-3 * (k + 1)) for k, name in enumerate(names)}
    kept = {"early": 0.5, "mid": 0.05, "late": 5e-4}[regime]
    return dict(n=n, d=d, regime=regime, kind="step", kept=kept, candidates=candidates)


MACHINE = dict(threads=2, cpu="Test CPU", instruction_set="avx2", torch="2", date="2030-01-01")
MEMORY = [
    {"candidate": k, "n": n, "d": 512, "bytes": n * 2**20}
    for k in ("ours", "dense", "compiled", "metric_learning")
    for n in (128, 512)
]


def made_up_tree(root, memory):
    """A README and the results of a run."""
    found = {"machine": MACHINE, "times": [made_up(n, 512, r) for n in (128, 512) for r in REGIMES]}
    (root / "docs").mkdir()
    (root / "bench" / "results").mkdir(parents=True)
    text = json.dumps({**found, "memory": memory})
    (root / "bench" / "results" / "cpu-2030-01-01.json").write_text(text)
    marks = "".join(f"<!-- {n}:start -->\nstale\n<!-- {n}:end -->\n" for n in ("bench", "gpu"))
    (root / "README.md").write_text(f"before\n{marks}after\n")


def test_tables_fill_the_readme_and_draw(tmp_path):
    made_up_tree(tmp_path, MEMORY)
    tables.publish(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before") and text.endswith("after\n") and "stale" not in text
    assert "| 512 | 512 | mid | 5.00% | 2.00 ms | 2.0x | 3.0x | 4.0x | 5.0x |" in text
    assert "Test CPU" in text and "| 128 | 512 | early |" not in text
    assert tables.NO_GPU in text
    assert "| 128 | 512 | early |" in (tmp_path / "docs" / "benchmark.md").read_text()
    for name in ("bench_time.png", "bench_memory.png"):
        assert (tmp_path / "docs" / name).read_bytes().startswith(b"\x89PNG")


def test_readme_shows_every_loss_of_the_family_at_the_middle_size(tmp_path):
    made_up_tree(tmp_path, [])
    text = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(f"{text}<!-- family:start -->\n<!-- family:end -->\n")
    machine = {**MACHINE, "pytorch_metric_learning": "2", "commit": "abc"}
    family = [
        {
            "member": member,
            "n": n,
            "left_out": None,
            "times": {"ours": {"step": 1e-3 * n}, "metric_learning": {"step": n, "ratio": 1e3}},
            "bytes": {"ours": n << 20, "metric_learning": None},
        }
        for member in ("NCA", "Circle")
        for n in (1, 2, 4)
    ]
    found = {"machine": machine, "shape": {"d": 8, "per_class": 4}, "family": family}
    (tmp_path / "bench" / "results" / "family-2030-01-01.json").write_text(json.dumps(found))
    pages = tables.pages(tmp_path)
    for member in ("NCA", "Circle"):
        row = f"| {member} | 2 | 2.0 ms | 2000.0 ms | 1000.0x | 2.0 MiB |"
        assert row in pages["README.md"] and f"| {member} | 4 |" not in pages["README.md"]
        assert row in pages["docs/benchmark_family.md"]
        assert f"| {member} | 4 |" in pages["docs/benchmark_family.md"]


def test_tables_without_memory_keep_the_old_plot(tmp_path):
    made_up_tree(tmp_path, [])
    (tmp_path / "docs" / "bench_memory.png").write_bytes(b"old")
    tables.publish(tmp_path)
    assert (tmp_path / "docs" / "bench_memory.png").read_bytes() == b"old"


def test_pages_are_what_the_committed_results_make():
    """`make tables` after a change of either."""
    for name, text in tables.pages().items():
        assert (tables.ROOT / name).read_text() == text, f"{name}: run make tables"


def test_plots_are_of_the_committed_results():
    """Each picture names the results that it was drawn from."""
    for name, (_, found) in tables.plots().items():
        drawn = (tables.ROOT / name).read_bytes()
        assert report.digest_of(found).encode() in drawn, f"{name}: run make tables"


def test_a_changed_result_is_seen(tmp_path):
    for part in ("bench/results", "docs"):
        shutil.copytree(tables.ROOT / part, tmp_path / part)
    shutil.copy(tables.ROOT / "README.md", tmp_path)
    (path,) = sorted((tmp_path / "bench" / "results").glob("cpu-*.json"))[-1:]
    found = json.loads(path.read_text())
    found["times"][0]["candidates"]["ours"]["step"] *= 2
    path.write_text(json.dumps(found))
    pages = tables.pages(tmp_path)
    assert (tmp_path / "docs/benchmark.md").read_text() != pages["docs/benchmark.md"]
    (_, drawn) = tables.plots(tmp_path)["docs/bench_time.png"]
    picture = (tmp_path / "docs/bench_time.png").read_bytes()
    assert report.digest_of(drawn).encode() not in picture


def test_a_page_is_made_of_a_file_of_results(tmp_path):
    results = tmp_path / "bench" / "results" / "h100"
    results.mkdir(parents=True)
    (tmp_path / "README.md").write_text(
        "<!-- bench:start --><!-- bench:end -->\n<!-- gpu:start -->\n<!-- gpu:end -->\n"
    )
    machine = {
        **dict.fromkeys(SAME, "x"),
        "gpu": "NVIDIA H100",
        "commit": "abc",
        "changed": False,
        "date": "2030",
    }
    record = Record(results / "results.jsonl", machine)
    step = {"n": 256, "d": 512, "dtype": "bfloat16", "regime": "mid", "kept": 0.05}
    step |= {"backend": "cuda", "floor": {"t1": 1e-6, "t3": 3e-6, "bytes": 1e-7}}
    ours = {"gpu": 2e-5, "host": 1e-4, "graph": 1e-5, "launches": 9, "peak_bytes": 1 << 20}
    eager = {"ours": ours, "dense": {"gpu": 4e-5, "ratio": 2.0}}
    record.add("step", ("eager", 256), {**step, "look": "eager", "candidates": eager})
    slower = {"ours": {**ours, "gpu": 3e-5}, "compiled": {"gpu": 9e-5, "ratio": 3.0}}
    record.add("step", ("compiled", 256), {**step, "look": "compiled", "candidates": slower})
    record.add(
        "outcome", ("bench",), {"step": "bench", "state": "KILLED", "detail": "d", "seconds": 9}
    )
    for place, outcome in enumerate(("passed", "passed", "failed")):
        test = {"outcome": outcome, "text": "x = 1\nE   AssertionError: off by 1\nE   more"}
        record.add("test", ("triton", f"tests/test_a.py::test_{place}"), test)
    found = json.loads(json.dumps(tables.pages(tmp_path)))
    page, readme = found[tables.GPU_PAGE], found["README.md"]
    row = "| bfloat16 | mid | cuda | 256 | 512 | 5.00% | 20 us | 1 us | 3 us | 100 us | 10 us | 9 |"
    assert row in page and "2x | 3x |" in page
    assert "| bfloat16 | 256 | 20 us | 10 us | 40 us (2x) |  | 1.0 MiB |  |  |" in readme
    assert "NVIDIA H100, torch x, commit abc" in readme
    assert "| bench | KILLED | d | 9 s |" in page
    assert "| `tests/test_a.py` | 2 | 1 | 0 | 0 |" in page
    assert "- `tests/test_a.py::test_2`: AssertionError: off by 1\n" in page
    assert "docs/bench_gpu.png" in tables.plots(tmp_path)
