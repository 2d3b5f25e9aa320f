"""What nvcc makes of an instance of the CUDA kernels, and how many instructions hot loops issue.

`python tests/sass.py tiled_float16 --architecture 90` prints the counts, `--write` puts the most of
every instance and architecture into tests/sass.json.

A stage is the loop that loads one stage of operands and multiplies the other: found by its branch
back and its matrix instructions. What a pair costs is seen where loops over pairs have
exponentials: the loop with the fewest instructions for each is that of tiles of negatives alone,
the most of them. Every branch counts as taken, so a count bounds what a warp issues.
"""

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from host_gpu.build import INSTANCES, chosen

TESTS = Path(__file__).parent
CSRC = TESTS.parent / "csrc"
NVCC, PTXAS = shutil.which("nvcc"), shutil.which("ptxas")
ARCHITECTURES = json.loads((TESTS / "ptxas.json").read_text())["architectures"]
# Matrix instructions of one warp in one stage of 128 bytes.
PER_STAGE = {"float64": 64, "float32": 96}
OTHER_TYPES = 32
MATRIX = ("HMMA", "DMMA", "HGMMA", "UTCHMMA")


def compiled(instance, architecture, folder):
    """Cubin and ptxas' report of one instance."""
    ptx, cubin = folder / "instance.ptx", folder / "instance.cubin"
    command = [NVCC, "-std=c++17", "-O3", f"-I{CSRC}", f"-arch=compute_{architecture}", "-ptx"]
    command += ["-Werror", "all-warnings", *chosen(instance), "-o", ptx]
    run([*command, CSRC / "cuda" / "instance.cu"])
    return cubin, run([PTXAS, "-O3", "-v", f"-arch=sm_{architecture}", "-o", cubin, ptx])


def run(command):
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return made.stdout + made.stderr


def disassembler():
    if shutil.which("nvdisasm"):
        return shutil.which("nvdisasm")
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    return found if found.exists() else None


def functions(listing):
    """{name: listing} of the kernels of msk::gpu and of the phases that they call."""
    found = {}
    parts = re.split(r"^(?:\.text\.|\$)(\S+):$", listing, flags=re.MULTILINE)
    for label, code in zip(parts[1::2], parts[2::2], strict=True):
        mangled = re.search(r"_ZN3msk3gpu(\d+)(\w+)", label.split("$")[-1])
        if mangled:
            found[mangled[2][: int(mangled[1])]] = code
    return found


class Loop(NamedTuple):
    """From the label that is branched back to, to the last branch back."""

    first: int
    last: int

    @property
    def size(self):
        return self.last - self.first + 1

    def holds(self, other):
        return self != other and self.first <= other.first and other.last <= self.last


class Code:
    """The instructions of a function, and its loops."""

    def __init__(self, listing):
        self.operations, labels, targets = [], {}, []
        for line in listing.splitlines():
            label = re.match(r"\s*(\.L_x_\d+):", line)
            code = re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(\S+)(.*);", line)
            if label:
                labels[label[1]] = len(self.operations)
            elif code:
                target = re.search(r"`\((\.L_x_\d+)\)", code[2])
                targets.append(target[1] if target and code[1].startswith("BRA") else None)
                self.operations.append(code[1])
        ends = {}
        for at, target in enumerate(targets):
            first = labels.get(target, at)
            if first < at:
                ends[first] = at
        self.loops = [Loop(*ends_at) for ends_at in sorted(ends.items())]

    def counts(self, loop):
        return Counter(self._within(loop))

    def matrix(self, loop):
        return sum(o.startswith(MATRIX) for o in self._within(loop))

    def _within(self, loop):
        return self.operations[loop.first : loop.last + 1]

    def products(self):
        """Innermost loops with matrix instructions, the one with most of them first."""
        with_matrix = [loop for loop in self.loops if self.matrix(loop)]
        inner = [a for a in with_matrix if not any(a.holds(b) for b in with_matrix)]
        return sorted(inner, key=lambda loop: -self.matrix(loop))

    def around(self, loop):
        return min((o for o in self.loops if o.holds(loop)), key=lambda o: o.last, default=None)

    def stage(self, per_stage):
        """Instructions of a stage."""
        product = self.products()[0]
        matrix = self.matrix(product)
        if matrix >= per_stage:
            return product.size * per_stage // matrix
        loop = self.around(product)
        return loop.size + (per_stage // matrix - 1) * product.size

    def exponential(self):
        """The fewest instructions a loop over pairs has for each of its exponentials, or None."""
        found = [
            loop.size / self.counts(loop)["MUFU.EX2"]
            for loop in self.loops
            if self.counts(loop)["MUFU.EX2"] and not self.matrix(loop)
        ]
        return round(min(found)) if found else None


def counts(listings, instance):
    """{function: {"stage": ..., "exponential": ...}} of the functions with a product."""
    per_stage = PER_STAGE.get(instance.split("_")[1], OTHER_TYPES)
    found = {}
    for name, listing in sorted(listings.items()):
        code = Code(listing)
        if not code.products():
            continue
        found[name] = {"stage": code.stage(per_stage)}
        if code.exponential() is not None:
            found[name]["exponential"] = code.exponential()
    return found


def listings_of(instance, architecture):
    with tempfile.TemporaryDirectory() as folder:
        cubin, _ = compiled(instance, architecture, Path(folder))
        return functions(run([disassembler(), cubin]))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("instances", nargs="*", default=INSTANCES)
    parser.add_argument("--architecture", type=int, nargs="*", default=ARCHITECTURES)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    most = {}
    for instance in options.instances or INSTANCES:
        for architecture in options.architecture:
            for name, found in counts(listings_of(instance, architecture), instance).items():
                print(f"sm_{architecture} {instance} {name}: {found}")
                bounds = most.setdefault(instance, {}).setdefault(name, found)
                most[instance][name] = {k: max(v, found[k]) for k, v in bounds.items()}
    if options.write:
        (TESTS / "sass.json").write_text(json.dumps(most, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
