"""python tests/prove_gpu.py [--rehearse] [--results FOLDER] [step ...]: what a GPU must show.

The steps, their order and their time limits are the plan in tests/gpu_proof/steps.py; without a
name all of it, "first" and "second" name its halves. A step that hangs is killed, what it had
written stays. results.jsonl and log.txt in FOLDER are written as things are found. Nothing is
installed: the packages are this Python's own. Ends with 1 if a step failed or was killed, with 2 if
this Python cannot show anything.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from gpu_proof import proof, rehearsal, steps  # noqa: E402
from gpu_proof.site import Site  # noqa: E402


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="prove_gpu", description=__doc__)
    parser.add_argument("steps", nargs="*", metavar="step")
    parser.add_argument("--results", type=Path, default=HERE.parent / "build" / "gpu-results")
    parser.add_argument("--rehearse", action="store_true", help="every step, tiny, on the CPU")
    options = parser.parse_args(arguments)
    # Asked to end, it ends its step too, which is a process group of its own.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if options.rehearse:
        return rehearsal.main(options.results.resolve(), options.steps)
    try:
        chosen = steps.chosen(options.steps)
    except ValueError as error:
        print(f"make gpu: {error}")
        return proof.UNFIT
    site = Site(options.results.resolve())
    if why := site.unfit():
        print(f"make gpu: {why}")
        return proof.UNFIT
    if site.carried:
        print(f"modules built beforehand: {site.carried}")
    for remark in site.remarks():
        print(remark)
    start = time.monotonic()
    outcomes = proof.run(site, chosen)
    print(f"\n{proof.table(outcomes)}\n{time.monotonic() - start:.0f} s, results: {site.file}")
    return int(proof.failed(outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
