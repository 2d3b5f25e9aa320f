"""Finds the fastest tiles of every kernel on the present GPU and keeps them for its model.

From the standard tiles uphill: of all tiles one step away the fastest is taken, until none gains,
or the time is over. Each kernel's blocks, warps and stages are its own.
"""

import functools
import json
import math
import sys
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import torch

from ms_kernels.backends import triton as backend
from ms_kernels.backends.triton.tiles import (
    MODES,
    Tile,
    Tiles,
    agree,
    interpreted,
    pack,
    standard_tiles,
    tiles_of,
    tuned_file,
    unpack,
)
from ms_kernels.tools.command_line import check_output
from ms_kernels.tools.tune_ahead import Ahead, use

# Seconds of a candidate, None if it cannot run, spills or computes something else.
Time = Callable[[Tiles, str], float | None]
# Compiles candidates of a role that are about to be timed.
Compile = Callable[[list[Tiles], str], None]
# Seconds for all processes to be there, and for a step's candidates to be compiled: on an H200 17
# and 1 to 5. Who takes longer hangs.
MOST_TO_START, MOST_TO_COMPILE = 90.0, 60.0
GAIN = 0.98  # less than this share of the time, or it is noise
LEAST = Tile(16, 16, 16, 2, 1)
MOST = Tile(256, 256, 256, 16, 5)


def roles_of(tiles: Tiles) -> list[str]:
    """The scan first: the blocks of kept exponentials depend on its own."""
    every = ["scan", *(f"owner{depth}" for depth in tiles.owner), "weights", "product"]
    if tiles.lean is not None:
        every.insert(0, "lean")
    return every if tiles.stashed is None else [*every, "stashed"]


def tile_of(tiles: Tiles, role: str) -> Tile:
    if role.startswith("owner"):
        return tiles.owner[int(role.removeprefix("owner"))]
    tile: Tile = getattr(tiles, role)
    return tile


def with_tile(tiles: Tiles, role: str, tile: Tile) -> Tiles:
    if role.startswith("owner"):
        return tiles._replace(owner={**tiles.owner, int(role.removeprefix("owner")): tile})
    changed: Any = {role: tile}
    return tiles._replace(**changed)


def neighbours(tiles: Tiles, role: str) -> Iterator[Tiles]:
    """Tiles that differ in one number by one step, as far as the kernels can take them."""
    tile = tile_of(tiles, role)
    for field, value in tile._asdict().items():
        if field == "block_k" and role.startswith("owner"):
            continue  # the whole depth
        steps = (value - 1, value + 1) if field == "stages" else (value // 2, value * 2)
        for step in steps:
            if getattr(LEAST, field) <= step <= getattr(MOST, field):
                changed = with_tile(tiles, role, tile._replace(**{field: step}))
                if agree(changed):
                    yield changed


def climb(
    start: Tiles,
    role: str,
    time: Time,
    seen: Callable[[], object],
    over: Callable[[], bool],
    compile: Compile = lambda candidates, role: None,
) -> Tiles:
    """The fastest tiles of one role; `seen` is called for each candidate. What is one step away is
    tried in any case, what is further while time is not `over`."""
    best, fastest = start, time(start, role)
    if fastest is None:
        return start  # the standard tiles do not run here: nothing to compare with
    tried = {repr(start)}
    while True:
        found = best
        candidates = [tiles for tiles in neighbours(best, role) if repr(tiles) not in tried]
        compile(candidates, role)
        for candidate in candidates:
            tried.add(repr(candidate))
            seconds = time(candidate, role)
            seen()
            if seconds is not None and seconds < fastest * GAIN:
                found, fastest = candidate, seconds
        if found is best or over():
            return found
        best = found


def tuned(
    start: Tiles,
    time: Time,
    seen: Callable[[], object] = lambda: None,
    seconds: float = math.inf,
    compile: Compile = lambda candidates, role: None,
) -> Tiles:
    """Every role in turn, each beside what was found for those before it, and with a like share of
    the time that they left."""
    best, roles, end = start, roles_of(start), monotonic() + seconds
    for place, role in enumerate(roles):
        now = monotonic()
        until = now + (end - now) / (len(roles) - place)
        over = functools.partial(_is_past, until)
        best = climb(best, role, time, seen, over, compile)
    return best


def _is_past(moment: float) -> bool:
    return monotonic() > moment


def table(chosen: dict[str, Tiles]) -> str:
    lines = [f"{'':18}{'M':>5}{'N':>5}{'K':>5}{'warps':>7}{'stages':>8}"]
    for mode, tiles in chosen.items():
        for role in roles_of(tiles):
            m, n, k, warps, stages = tile_of(tiles, role)
            lines.append(f"{mode + ' ' + role:18}{m:5}{n:5}{k:5}{warps:7}{stages:8}")
    return "\n".join(lines)


def run(show: bool, modes: list[str] | None = None, seconds: float = 120.0) -> None:
    """Prints the tiles in use; unless `show`, finds them first and writes `tuned_file`.

    seconds: of all modes together, after which no step is begun.
    """
    if not 0 < seconds < math.inf:
        sys.exit(f"tune: expected a number of seconds above 0, got {seconds:g}")
    unknown = sorted(set(modes or ()) - set(MODES))
    if unknown:
        sys.exit(f"tune: expected modes of {', '.join(MODES)}, got {', '.join(unknown)}")
    if interpreted():
        sys.exit("tune: TRITON_INTERPRET=1 runs kernels on the CPU, where tiles say nothing")
    reason = backend.missing()
    if reason is not None:
        # On the CPU there is nothing to time: no hint at the interpreter.
        reason = reason.split(" (TRITON_INTERPRET")[0]
        sys.exit(f"tune: needs a GPU that the triton backend serves: {reason}")
    device = torch.device("cuda", torch.cuda.current_device())
    gpu = torch.cuda.get_device_name(device)
    file = tuned_file(gpu)
    if file is None:
        sys.exit("tune: no home folder to keep the tiles in; set XDG_CACHE_HOME to a full path")
    if not show:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            sys.exit(f"tune: cannot make {file.parent}: {error.strerror}; set XDG_CACHE_HOME")
        check_output("tune", "XDG_CACHE_HOME", file)
        chosen = {mode: tiles_of(mode, device) for mode in MODES}
        wanted = list(modes or MODES)
        standard = {
            m: standard_tiles(m, torch.cuda.get_device_capability(device)[0]) for m in wanted
        }
        with Ahead(functools.partial(_prepare, device, standard)) as ahead:
            print("tune: starting processes that compile", flush=True)
            ahead.start(MOST_TO_START)
            for mode, start in standard.items():
                chosen[mode] = _tune(mode, device, start, seconds / len(wanted), ahead)
                found = {m: pack(t) for m, t in chosen.items()}
                file.write_text(json.dumps(found, indent=1) + "\n")
        tiles_of.cache_clear()
    where = file if file.exists() else "the standard table (`tune` has not run)"
    print(f"{gpu}: tiles of {where}")
    print(table({mode: tiles_of(mode, device) for mode in MODES}))


def _prepare(device: torch.device, standard: dict[str, Tiles]) -> None:
    """Of a process that compiles."""
    from ms_kernels.tools.tune_trial import Trial

    use({mode: Trial(mode, device, tiles) for mode, tiles in standard.items()})


def _tune(mode: str, device: torch.device, standard: Tiles, seconds: float, ahead: Ahead) -> Tiles:
    try:
        from tqdm import tqdm
    except ImportError:
        sys.exit("tune needs tqdm: pip install tqdm")
    from ms_kernels.tools.tune_trial import Trial

    def compile(candidates: list[Tiles], role: str) -> None:
        ahead.compile(mode, candidates, role, MOST_TO_COMPILE)

    time = Trial(mode, device, standard).time
    with tqdm(desc=f"tune {mode}", unit="tile") as bar:
        found = tuned(standard, time, bar.update, seconds, compile)
    return unpack(pack(found), standard)
