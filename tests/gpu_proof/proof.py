"""Runs the steps of the plan, each within its time; its end is written as soon as known."""

import time
from collections.abc import Sequence
from typing import NamedTuple

from gpu_proof import process
from gpu_proof.site import ROOT, Site
from gpu_proof.steps import Step

from bench.gpu_record import append, read

PASSED, FAILED, KILLED, LEFT_OUT = "passed", "FAILED", "KILLED", "left out"
UNFIT = 2  # what a step ends with where this Python cannot show anything
BROKEN = 75  # and where it could not go on: bench/gpu_device.py


class Outcome(NamedTuple):
    step: str
    state: str
    detail: str
    seconds: float

    @property
    def line(self) -> str:
        return f"{self.state:9} {self.step:10} {self.seconds:5.0f} s  {self.detail}"


def run(site: Site, steps: Sequence[Step]) -> list[Outcome]:
    """Every step runs, whatever those before it came to."""
    start, planned, found = time.monotonic(), 0, []
    site.results.mkdir(parents=True, exist_ok=True)
    for step in steps:
        planned += step.seconds
        # What earlier steps left unused, also by being left out, is this one's.
        left = planned - (time.monotonic() - start) if step.inherits else 0.0
        limit = max(float(step.seconds), left)
        outcome = run_step(site, step, limit)
        print(f"== {outcome.line}", flush=True)
        write(site, outcome)
        found.append(outcome)
    return found


def run_step(site: Site, step: Step, limit: float) -> Outcome:
    print(f"\n== {step.name}: {step.what}, at most {limit:.0f} s", flush=True)
    why = step.why_not(site)
    if why is not None:
        return Outcome(step.name, LEFT_OUT, why, 0.0)
    command = step.command(site, limit)
    print("$", " ".join(command), flush=True)
    with site.log.open("a") as file:
        file.write(f"\n== {step.name}: {' '.join(command)}\n")
    before = len(read(site.file))
    environment = site.environment({**step.additions, "MSK_PROOF_STEP": step.name})
    start = time.monotonic()
    while True:
        left = limit - (time.monotonic() - start)
        ended = process.run(command, left, site.log, ROOT, environment)
        if ended.code != BROKEN or time.monotonic() - start > limit / 2:
            break
        print(f"== {step.name}: again, for what is left after the broken context", flush=True)
    seconds = time.monotonic() - start
    cases = read(site.file)[before:]
    detail = counted(cases)
    if ended.killed:
        return Outcome(step.name, KILLED, f"after its {limit:.0f} s; {detail}", seconds)
    if ended.code != 0:
        return Outcome(step.name, FAILED, f"ended with {ended.code}; {detail}", seconds)
    if step.tests and not any(case.get("outcome") == "passed" for case in cases):
        return Outcome(step.name, FAILED, f"no test passed; {detail}", seconds)
    return Outcome(step.name, PASSED, detail, seconds)


def counted(cases: Sequence[dict[str, object]]) -> str:
    """What a step wrote: tests by outcome, cases by kind, and those that failed by name."""
    counts: dict[str, int] = {}
    wrong = []
    for case in cases:
        name = str(case["outcome"] if case["kind"] == "test" else case["kind"])
        counts[name] = counts.get(name, 0) + 1
        if (
            case.get("outcome") in ("failed", "cut off")
            or "error" in case
            or case["kind"] == "finding"
        ):
            wrong.append(" ".join(map(str, case["key"])))  # type: ignore[call-overload]
    text = ", ".join(f"{number} {name}" for name, number in counts.items()) or "nothing was written"
    return text + (f"; see {'; '.join(wrong[:3])}" if wrong else "")


def write(site: Site, outcome: Outcome) -> None:
    """With the machine that the file begins with, if a step came as far as naming it."""
    machines = [case["on"] for case in read(site.file) if case["kind"] == "machine"]
    case = {"kind": "outcome", "on": (machines or [""])[-1], "key": [outcome.step]}
    append(site.file, {**case, **outcome._asdict()})
    with site.log.open("a") as file:
        file.write(f"== {outcome.line}\n")


def table(outcomes: Sequence[Outcome]) -> str:
    return "\n".join(outcome.line for outcome in outcomes)


def failed(outcomes: Sequence[Outcome]) -> bool:
    return any(outcome.state in (FAILED, KILLED) for outcome in outcomes)
