"""How the tuner chooses, with made-up times."""

import functools
import json
import math
import os
import subprocess
import sys
from time import sleep

import pytest
import torch

from ms_kernels.backends.triton import tiles as table
from ms_kernels.backends.triton.tiles import TABLE, Tile, agree, pack, unpack
from ms_kernels.tools import tune, tune_ahead

ALL = [(major, mode) for major in TABLE for mode in table.MODES]
HALF = TABLE[9]["half"]


@pytest.mark.parametrize(("major", "mode"), ALL)
def test_standard_tiles_agree(major, mode):
    assert agree(TABLE[major][mode])


@pytest.mark.parametrize(("major", "mode"), ALL)
def test_neighbours_agree_and_differ_in_one_number(major, mode):
    start = TABLE[major][mode]
    for role in tune.roles_of(start):
        found = list(tune.neighbours(start, role))
        assert len(found) >= 3
        for candidate in found:
            assert agree(candidate)
            pairs = zip(tune.tile_of(candidate, role), tune.tile_of(start, role), strict=True)
            assert sum(a != b for a, b in pairs) == 1
            assert tune.with_tile(candidate, role, tune.tile_of(start, role)) == start


@pytest.mark.parametrize(
    "flawed",
    [
        HALF._replace(scan=Tile(64, 16, 64, 8, 3)),  # rows are merged by 32
        HALF._replace(scan=Tile(32, 64, 64, 8, 3)),  # another instruction than the others
        HALF._replace(scan=Tile(16, 128, 64, 8, 3)),
        HALF._replace(scan=Tile(96, 64, 64, 8, 3)),
        HALF._replace(stashed=Tile(64, 48, 64, 8, 3)),
        HALF._replace(stashed=Tile(8, 64, 64, 8, 3)),
    ],
)
def test_blocks_that_do_not_fit_are_no_tiles(flawed):
    assert not agree(flawed)


def far_from(wanted):
    """Seconds that fall with each step towards the wanted tile."""
    return lambda tiles, role: (
        1.0
        + sum(
            abs(a.bit_length() - b.bit_length()) if i < 4 else abs(a - b)
            for i, (a, b) in enumerate(zip(tune.tile_of(tiles, role), wanted, strict=True))
        )
    )


def test_it_climbs_to_the_fastest():
    wanted = Tile(128, 256, 32, 4, 4)
    seen = []
    found = tune.climb(HALF, "scan", far_from(wanted), lambda: seen.append(1), lambda: False)
    assert found.scan == wanted and found._replace(scan=HALF.scan) == HALF
    assert 5 < len(seen) < 60


def test_it_ends_in_time():
    """With what it has found so far: steps that were begun are ended, none is begun."""
    seen = []
    limit = far_from(Tile(128, 256, 32, 4, 4))
    found = tune.climb(HALF, "scan", limit, lambda: seen.append(1), lambda: True)
    assert len(seen) == len(list(tune.neighbours(HALF, "scan")))
    assert limit(found, "scan") == limit(HALF, "scan") - 1
    timed = {role: 0 for role in tune.roles_of(HALF)}

    def time(tiles, role):
        timed[role] += 1
        return 1.0

    assert tune.tuned(HALF, time, seconds=0.0) == HALF and min(timed.values()) > 3


def test_candidates_are_compiled_before_they_are_timed():
    compiled, timed = [], []

    def time(tiles, role):
        assert tiles == HALF or repr(tiles) in compiled
        timed.append(repr(tiles))
        return far_from(Tile(128, 256, 32, 4, 4))(tiles, role)

    def compile(candidates, role):
        compiled.extend(map(repr, candidates))

    tune.climb(HALF, "scan", time, lambda: None, lambda: False, compile)
    assert set(timed[1:]) == set(compiled) and len(compiled) == len(set(compiled)) > 5


class Writes:
    """In the place of a trial."""

    def __init__(self, folder):
        self.folder = folder

    def compile(self, tiles, role):
        if role == "crash":
            os._exit(1)
        if role == "hang":
            sleep(600.0)
        (self.folder / f"{tiles.scan.block_m}-{role}-{os.getpid()}").touch()


def writes(folder):
    tune_ahead.use({"half": Writes(folder)})


def test_processes_of_their_own_compile(tmp_path):
    given = [HALF._replace(scan=HALF.scan._replace(block_m=m)) for m in (16, 32, 64, 128)]
    with tune_ahead.Ahead(functools.partial(writes, tmp_path), 2) as ahead:
        ahead.start(60.0)
        ahead.compile("half", given, "scan", math.inf)
        found = [path.name.split("-") for path in tmp_path.iterdir()]
        assert sorted(name[0] for name in found) == sorted(["16", "32", "64", "128"])
        assert all(int(pid) != os.getpid() for *_, pid in found)
        ahead.compile("half", given, "crash", 60.0)  # and none compiles ahead from then on
        assert ahead.pool is None
        ahead.compile("half", given, "scan", 60.0)


@pytest.mark.parametrize("role", ["hang", "unknown mode"])
def test_a_process_that_hangs_or_fails_is_ended(tmp_path, role):
    with tune_ahead.Ahead(functools.partial(writes, tmp_path), 2) as ahead:
        ahead.start(60.0)
        workers = list(ahead.pool._processes.values())
        ahead.compile("half" if role == "hang" else "none", [HALF] * 3, role, 1.0)
        assert ahead.pool is None
        for worker in workers:
            worker.join(10.0)
            assert worker.exitcode is not None


def test_rejected_candidates_are_never_chosen():
    def time(tiles, role):
        tile = tune.tile_of(tiles, role)
        return None if tile.stages > 4 else 1 / tile.stages

    found = tune.tuned(HALF, time)
    assert all(tune.tile_of(found, role).stages == 4 for role in tune.roles_of(found))


def test_noise_and_a_slower_world_change_nothing():
    times = iter([1.0, *[0.99] * 1000])
    assert tune.climb(HALF, "scan", lambda *_: next(times), lambda: None, lambda: False) == HALF
    assert tune.tuned(HALF, lambda *_: None) == HALF


def test_every_role_is_tuned_and_kept():
    found = tune.tuned(HALF, lambda tiles, role: 1 / tune.tile_of(tiles, role).warps)
    for role in tune.roles_of(HALF):
        assert tune.tile_of(found, role).warps == 16
    assert unpack(json.loads(json.dumps(pack(found))), HALF) == found
    assert "half owner256" in tune.table({"half": found})


def test_a_trial_runs_every_role(monkeypatch):
    """In the interpreter, where nothing is timed: other tiles give the same results."""
    pytest.importorskip("triton")
    if not table.interpreted():
        pytest.skip("a GPU times them")
    from ms_kernels.tools import tune_trial

    monkeypatch.setitem(tune_trial.WORK, "tf32x3", (torch.float32, "highest", 40, 1e-5))
    monkeypatch.setattr(tune_trial, "SCANNED_DEPTH", 40)
    standard = table.tiles_of("tf32x3", torch.device("cpu"))
    trial = tune_trial.Trial("tf32x3", torch.device("cpu"), standard)
    for role in tune.roles_of(standard):
        smaller = tune.tile_of(standard, role)._replace(block_n=32 if role == "scan" else 16)
        (want,) = trial._run_of(standard, role)()
        (got,) = trial._run_of(tune.with_tile(standard, role, smaller), role)()
        assert want.isfinite().all() and want.any()
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("interpret", "arguments", "said"),
    [
        ("1", [], "TRITON_INTERPRET"),
        ("0", ["--modes", "int8"], "expected modes of half, tf32x3, tf32, float64, got int8"),
    ],
)
def test_what_it_cannot_do_is_said(interpret, arguments, said):
    done = subprocess.run(
        [sys.executable, "-m", "ms_kernels", "tune", *arguments],
        env={**os.environ, "TRITON_INTERPRET": interpret},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and said in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("arguments", [[], ["--show"]], ids=str)
def test_without_a_gpu_it_says_so(arguments, monkeypatch):
    from ms_kernels.__main__ import main

    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(sys, "argv", ["ms_kernels", "tune", *arguments])
    with pytest.raises(SystemExit, match="no CUDA device"):
        main()


def test_a_tuned_file_is_read(tmp_path):
    wanted = HALF._replace(scan=Tile(128, 256, 32, 4, 4))
    file = tmp_path / "tiles.json"
    file.write_text(json.dumps({"half": pack(wanted)}))
    assert table.tuned(file, "half", HALF) == wanted


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"half": 1}',
        json.dumps({"half": pack(HALF) | {"scan": [64, 16, 64, 8, 3]}}),
        json.dumps({"half": pack(HALF) | {"scan": [64, 128, 64, 8]}}),
        json.dumps({"half": pack(HALF) | {"product": ["64", 64, 64, 8, 3]}}),
        json.dumps({"half": pack(HALF) | {"weights": [64, 64, 0, 8, 3]}}),
        json.dumps({"half": pack(HALF) | {"weights": [32, 64, 64, 8, 3]}}),  # other instructions
        json.dumps({"half": pack(HALF) | {"scan": [64, 128, 64, 8, 1000]}}),
        json.dumps({"half": pack(HALF) | {"scan": [64, 128, 64, 1024, 3]}}),
        json.dumps({"half": pack(HALF) | {"scan": [64, 128, 1, 8, 3]}}),
        json.dumps({"half": pack(HALF) | {"owner": {"-5": [64, 64, 32, 8, 2]}}}),
        "[" * 100_000,
    ],
)
def test_an_unusable_tuned_file_is_named_and_left_aside(tmp_path, content):
    file = tmp_path / "tiles.json"
    file.write_text(content)
    with pytest.warns(UserWarning, match=rf"{file.name} holds no usable tiles for half"):
        assert table.tuned(file, "half", HALF) == HALF


def test_where_tuned_tiles_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert table.tuned_file("NVIDIA H100/80").parent == tmp_path / "ms_kernels"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for useless in ("", "here"):
        monkeypatch.setenv("XDG_CACHE_HOME", useless)
        assert tmp_path / "home" in table.tuned_file("NVIDIA H100").parents

    def no_home():
        raise RuntimeError("no home")

    monkeypatch.setattr(table.Path, "home", no_home)
    assert table.tuned_file("NVIDIA H100") is None and table.tuned(None, "half", HALF) == HALF
