"""Every step of `make gpu` without a GPU: the same script, commands and readers, tiny sizes.

Device calls are answered by bench/gpu_stand_in.py, the CUDA kernels executed by tests/host_gpu, the
Triton kernels interpreted, NVIDIA's tools by shims.py. Then what goes wrong on purpose: a step that
hangs, one that fails, one whose tool is missing, and a second run of one that was done.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from gpu_proof import proof, shims
from gpu_proof.site import ROOT, Site
from gpu_proof.steps import FIRST, GROUPS, MORE, SECOND, Step, chosen, measuring
from host_gpu import build

from bench.gpu_record import read

LAUNCHER = "test_triton_launcher"
TINY = {
    "bench.gpu_latency": ["--small", "24", "--large", "56"],
    # One of each road: lists of triplets, a form of sums, panels.
    "bench.gpu_family": ["--sizes", "16", "--losses", "Triplet", "NTXent", "Histogram"],
    "gpu_proof.ncu": ["--paths", "batch-bfloat16", "triton-bfloat16"],
}
TINY_STEPS = ["--sizes", "40", "--depths", "16", "--dtypes", "bfloat16", "--regimes", "mid"]
# The tests that only a GPU runs, and of the others a few, which every run of the suite interprets.
FEW_TESTS = "test_gpu or N1_"
HANG = f"""
import os, subprocess, sys, time
sys.path[:0] = [{str(ROOT)!r}]
from pathlib import Path
from bench.gpu_record import append
child = subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"])
append(Path(os.environ["MSK_PROOF_RESULTS"]), dict(kind="hang", on="", key=[child.pid]))
print("found one case, then hung", flush=True)
time.sleep(600)
"""


class Rehearsed(Site):
    rehearsed = True
    few_tests = FEW_TESTS
    most_workers = 2

    def environment(self, additions: dict[str, str]) -> dict[str, str]:
        found = super().environment(additions)
        # One thread: the steps are tiny, and threads that wait for work would spin.
        found |= {"MSK_REHEARSAL": "1", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        tools = str(shims.write(self.results / "tools"))
        return {**found, "PATH": os.pathsep.join([tools, found["PATH"]])}

    def module(self, name: str) -> list[str]:
        return [sys.executable, "-m", "gpu_proof.on_cpu", name]

    def tiny(self, module: str) -> list[str]:
        return TINY.get(module, TINY_STEPS if module == "bench.gpu" else [])

    def build_command(self) -> list[str]:
        return [sys.executable, "-m", "gpu_proof.carry", "--dry"]

    def tool(self, name: str) -> str | None:
        return str(self.results) if name in shims.TOOLS else super().tool(name)

    @cached_property
    def probe(self) -> dict[str, Any]:
        return {"capability": [9, 0]}

    carried = None

    @property
    def no_cuda_module(self) -> str | None:
        """Here they are executed on the CPU, where they can be built for it."""
        return build.why_not()

    @cached_property
    def no_interpreter(self) -> str | None:
        """Asked of another process, whose environment is a step's."""
        ask = "from gpu_proof.on_cpu import no_interpreter as n; print(n() or '')"
        command = [sys.executable, "-c", ask]
        done = subprocess.run(command, env=self.environment({}), capture_output=True, text=True)
        if done.returncode:
            return f"Triton's interpreter cannot be asked for: {done.stderr.strip()[-300:]}"
        return done.stdout.strip() or None


def python(code: str) -> Callable[[Site, float], list[str]]:
    return lambda site, limit: [sys.executable, "-c", code]


def without_tools(site: Site) -> str | None:
    return site.lacking("cmake", "ninja", "c++") or site.unimportable("pybind11")


def without_launcher(site: Site) -> str | None:
    if not (ROOT / "tests" / f"{LAUNCHER}.py").exists():
        return "it is not here"
    return site.unimportable("triton") or site.unimportable("triton.backends.nvidia")


def launcher_tests(site: Site, limit: float) -> list[str]:
    return [*site.pytest(1), f"tests/{LAUNCHER}.py"]


BEFORE = Step(
    "stand-ins",
    "the CUDA kernels for the CPU",
    300,
    lambda site, limit: [sys.executable, "-m", "gpu_proof.on_cpu"],
)
LAUNCHED = Step(
    "launcher",
    "Triton's launcher under a stand-in driver",
    300,
    launcher_tests,
    without_launcher,
    {"MSK_REHEARSAL": "0", "TRITON_INTERPRET": "0", "LAUNCHER_TESTS": "test_counts.py"},
    tests=True,
)
# What goes wrong on purpose; a second run of a step that was done measures nothing.
WRONG = (
    Step("hang", "must be killed", 8, python(HANG), inherits=False),
    Step("break", "must fail", 20, python("raise SystemExit(7)")),
    Step("absent", "must be left out", 20, python(""), lambda site: site.lacking("no-such-tool")),
    Step("again", "must measure nothing", 60, measuring("bench.gpu_latency")),
)
NO_COMPILER = "no C++ compiler or no pybind11, so that the CUDA kernels are not executed here"
NO_TRITON = "no Triton, or one that does not interpret with this NumPy"
# Steps that a rehearsal may leave out, and for want of what; every other one has all it needs.
MAY_BE_LEFT_OUT = {
    "build": "no CMake, no Ninja, no C++ compiler or no pybind11",
    **dict.fromkeys(("cuda", "memcheck", "racecheck", "synccheck"), NO_COMPILER),
    **dict.fromkeys(("triton", "symmetry"), NO_TRITON),
    "launcher": "no tests of it, or no Triton for NVIDIA's GPUs",
}
NOT_REHEARSED = ("initcheck", "small", "full")  # as others, by other arguments
# Here no step is cut off for being slow: the cores may be shared.
PATIENCE = 300


def steps(words: list[str]) -> list[Step]:
    """The whole plan, what is only run where it is named, and what goes wrong."""
    planned = [s for s in (*FIRST, *SECOND, *MORE) if s.name not in NOT_REHEARSED]
    planned = [s._replace(why_not=without_tools) if s.name == "build" else s for s in planned]
    known = [BEFORE, *planned, LAUNCHED, *WRONG]
    found = chosen([w for w in words if w not in GROUPS] or [s.name for s in known], known)
    return [s if s.name == "hang" else s._replace(seconds=max(s.seconds, PATIENCE)) for s in found]


def verdicts(site: Site, outcomes: list[proof.Outcome]) -> list[str]:
    """What is not as it should be: a rehearsal passes where its faults are seen."""
    wanted = {"hang": proof.KILLED, "break": proof.FAILED, "absent": proof.LEFT_OUT}
    wrong = []
    for outcome in outcomes:
        fit = wanted.get(outcome.step, proof.PASSED)
        if outcome.state == proof.LEFT_OUT and outcome.step in MAY_BE_LEFT_OUT:
            print(f"{outcome.step} was left out, as with {MAY_BE_LEFT_OUT[outcome.step]}")
        elif outcome.state != fit:
            got = f"{outcome.state} ({outcome.detail})"
            wrong.append(f"{outcome.step}: expected {fit}, got {got}")
    cases = read(site.file)
    for case in cases:
        if case["kind"] == "hang" and Path(f"/proc/{case['key'][0]}/status").exists():
            if "State:\tZ" not in Path(f"/proc/{case['key'][0]}/status").read_text():
                wrong.append(f"hang: its child {case['key'][0]} is alive")
    names = [
        tuple(map(str, (c["kind"], *c["key"]))) for c in cases if c["kind"] in ("latency", "step")
    ]
    if len(names) != len(set(names)):
        wrong.append("again: a case was measured twice")
    return wrong


def main(results: Path, words: list[str]) -> int:
    for leftover in ("results.jsonl", "log.txt"):
        (results / leftover).unlink(missing_ok=True)
    try:
        found = steps(words)
    except ValueError as error:
        print(f"make gpu-rehearsal: {error}")
        return proof.UNFIT
    site = Rehearsed(results)
    start = time.monotonic()
    outcomes = proof.run(site, found)
    wrong = verdicts(site, outcomes)
    print(f"\n{proof.table(outcomes)}\n{time.monotonic() - start:.0f} s, results: {site.file}")
    for line in wrong:
        print(f"WRONG: {line}")
    return int(bool(wrong))
