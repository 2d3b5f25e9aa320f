"""The plan of `make gpu`: its steps in order, each with the seconds that it may take.

A GPU is often lent for minutes, and a run may end before its plan does: what is known least comes
first. Seconds that a step leaves unused go to those after it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from gpu_proof.site import Site

Command = list[str]


class Step(NamedTuple):
    name: str
    what: str
    seconds: int
    command: Callable[[Site, float], Command]  # the second is the time limit
    why_not: Callable[[Site], str | None] = lambda site: None
    additions: dict[str, str] = {}  # to the environment
    inherits: bool = True  # the seconds that earlier steps left unused
    tests: bool = False  # it shows nothing unless a test passed


# Under a sanitizer the caching allocator would hide reads past the end of a tensor.
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
CUDA_TESTS = ("test_gpu_cuda", "test_gpu_family", "test_gpu_distances", "test_gpu_learned")
TRITON_TESTS = ("test_gpu", "test_gpu_family", "test_triton", "test_triton_division")
TRITON_TESTS += ("test_triton_edges", "test_triton_family", "test_gpu_distances")
TRITON_TESTS += ("test_gpu_learned", "test_triton_middle")
# Seconds before its limit at which a step begins no case more, and writes its tables.
CLOSING = 8


def measuring(module: str, *arguments: str, stops: bool = True) -> Callable[[Site, float], Command]:
    """A bench: it stops by itself before it would be killed; stops: it takes --seconds."""

    def command(site: Site, limit: float) -> Command:
        stop = ["--seconds", f"{max(1.0, limit - CLOSING):.0f}"] if stops else []
        return [*site.module(module), *arguments, *site.tiny(module), *stop, *site.results_option]

    return command


def testing(files: Sequence[str], chosen: str, workers: int) -> Callable[[Site, float], Command]:
    """pytest, whose tests are written as they end."""

    def command(site: Site, limit: float) -> Command:
        found = [f"tests/{name}.py" for name in files]
        words = " and ".join(f"({some})" for some in (chosen, site.few_tests) if some)
        select = ["-k", words] if words else []
        return [*site.pytest(min(workers, site.most_workers)), *found, *select]

    return command


def sanitized(tool: str) -> Callable[[Site, float], Command]:
    def command(site: Site, limit: float) -> Command:
        return [*site.module("gpu_proof.sanitizer"), tool, *site.results_option]

    return command


def no_module(site: Site) -> str | None:
    return site.no_cuda_module


def no_build(site: Site) -> str | None:
    if site.carried:
        return f"carried: {site.carried}"
    if site.no_cuda_module is None:
        return "ms_kernels._cuda of these sources is here"
    return site.lacking("nvcc", "cmake", "ninja", "c++") or site.unimportable("pybind11")


def no_sanitizer(site: Site) -> str | None:
    return site.lacking("compute-sanitizer") or no_module(site)


def no_ncu(site: Site) -> str | None:
    return site.lacking("ncu")


def no_pytest(site: Site) -> str | None:
    return site.unimportable("pytest")


def no_cuda_tests(site: Site) -> str | None:
    return no_pytest(site) or no_module(site)


def no_triton_tests(site: Site) -> str | None:
    return no_pytest(site) or site.unimportable("triton") or site.no_interpreter


# The build before all that names or measures what is built; of a carried module it takes no time.
FIRST = (
    Step(
        "build", "the CUDA module for this GPU", 25, lambda site, _: site.build_command(), no_build
    ),
    Step("machine", "versions, clocks, ceilings", 15, measuring("gpu_proof.machine", stops=False)),
    Step(
        "cuda",
        "tests of the CUDA kernels",
        50,
        testing(CUDA_TESTS, "cuda", 8),
        no_cuda_tests,
        tests=True,
    ),
    Step(
        "training",
        "memories, processes, compiled steps",
        40,
        testing(("test_gpu_training",), "", 8),
        no_triton_tests,
        tests=True,
    ),
    Step("latency", "small steps, large ones by kernel", 70, measuring("bench.gpu_latency")),
    Step("ncu", "counters of each main kernel", 50, measuring("gpu_proof.ncu"), no_ncu),
    Step("bench", "ours against others", 110, measuring("bench.gpu", "quick")),
    Step(
        "triton",
        "tests of Triton and the family",
        160,
        testing(TRITON_TESTS, "not cuda and not million", 14),
        no_triton_tests,
        tests=True,
    ),
)
SECOND = (
    Step(
        "memcheck", "memory of the CUDA kernels", 90, sanitized("memcheck"), no_sanitizer, UNCACHED
    ),
    Step(
        "racecheck", "races of the CUDA kernels", 60, sanitized("racecheck"), no_sanitizer, UNCACHED
    ),
    Step(
        "symmetry",
        "bits of S_ij and S_ji",
        30,
        testing(("test_gpu_symmetry",), "", 8),
        no_triton_tests,
        tests=True,
    ),
    Step("million", "a step of a million rows", 45, measuring("bench.gpu", "million")),
)
# Only where they are named.
MORE = (
    Step(
        "synccheck",
        "barriers of the CUDA kernels",
        90,
        sanitized("synccheck"),
        no_sanitizer,
        UNCACHED,
    ),
    Step("initcheck", "unwritten memory", 90, sanitized("initcheck"), no_sanitizer, UNCACHED),
    Step("memory", "a cross-batch memory", 60, measuring("bench.gpu_memory")),
    Step("family", "every loss against its peer", 200, measuring("bench.gpu_family")),
    Step("small", "depths of small batches", 200, measuring("bench.gpu", "small")),
    Step("full", "every size, depth, dtype and regime", 530, measuring("bench.gpu", "full")),
)
GROUPS = {"first": FIRST, "second": SECOND, "all": (*FIRST, *SECOND)}


def chosen(words: Sequence[str], known: Sequence[Step] = (*FIRST, *SECOND, *MORE)) -> list[Step]:
    """The named steps and groups in the order of the plan; without a word the whole plan."""
    names = {step.name for word in words or ["all"] for step in GROUPS.get(word, ())}
    names |= set(words) - set(GROUPS)
    unknown = sorted(names - {step.name for step in known})
    if unknown:
        wanted = ", ".join([*GROUPS, *(step.name for step in known)])
        raise ValueError(f"steps: expected some of {wanted}, got {', '.join(unknown)}")
    return [step for step in known if step.name in names]
