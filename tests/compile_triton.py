"""python tests/compile_triton.py sm_90 [--some] [names]: compiles the Triton kernels without a GPU.

The launches of real training steps are recorded instead of run, and each kernel compiled ahead of
time as it would be launched. Prints JSON: what the compiler says of every kernel; of --some, what a
minute allows, a tile or two of each mode.
"""

import dataclasses
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton_loops import inner_loop, shapes

from ms_kernels.backends import triton as backend
from ms_kernels.backends.interface import Known, Side, Term
from ms_kernels.backends.triton import problem, tiles
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.mining import SemiHardMining, TopKMining
from ms_kernels.rules.spec import NATIVE_WEIGHTINGS, PairSpec
from ms_kernels.rules.weighting import NCA, Circle, MultiSimilarity, NTXent, Triplet

# Kernels that visit all pairs: of half rows on sm_90 their inner loops are counted.
HOT = {"negative_scan_kernel", "gradient_kernel", "stashed_gradient_kernel"}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
}
OPTIONS = ("num_warps", "num_stages")
# Tensor-core instructions in PTX.
MATRIX = {
    "wgmma": r"wgmma\.mma_async",
    "mma": r"\bmma\.sync\S*\.f32\.",
    "dmma": r"\bmma\.sync\S*\.f64\.",
    "tcgen05": r"tcgen05\.mma",
}


def recorded(step):
    """(kernel, positional arguments, keywords) of every launch in step()."""
    launches = []
    real = JITFunction.run

    def record(self, *args, grid, warmup, **keywords):
        launches.append((self, args, keywords))

    JITFunction.run = record
    try:
        step()
    finally:
        JITFunction.run = real
    return launches


def source_of(kernel, args, keywords):
    """As the launcher specialises it: alignment, multiples of 16, and 1 as a constant."""
    signature, constants, attributes = {}, {}, {}
    given = dict(zip(kernel.arg_names, args, strict=False))
    unspecialized = {kernel.arg_names[p.num] for p in kernel.params if p.do_not_specialize}
    for place, name in enumerate(kernel.arg_names):
        if name not in given:
            signature[name] = "constexpr"
            constants[(place,)] = keywords[name]
            continue
        value = given[name]
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif name in unspecialized:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
        elif value == 1:
            signature[name] = "constexpr"
            constants[(place,)] = 1
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def compiled(kernel, args, keywords, capability):
    options = {name: keywords[name] for name in OPTIONS if name in keywords}
    target = GPUTarget("cuda", capability, 32)
    result = triton.compile(source_of(kernel, args, keywords), target=target, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        # What does not fit the registers goes to the stack. A disassembly takes as long as a
        # compilation: only where there is something to count.
        looked = kernel.__name__ in HOT and capability == 90 and keywords["MODE"] == "half"
        assembly = _tool("nvdisasm", "-c", file.name) if looked or int(found[2]) else ""
    loop = {}
    if looked:
        pairs = keywords["BLOCK_M"] * keywords.get("BLOCK_N", keywords["BLOCK_M"])
        of_tile, of_depth = inner_loop(assembly)
        loop = {
            "warps": keywords["num_warps"],
            "products": shapes(result.asm["ttgir"]),
            "tile": pairs,
            "loop_instructions": of_tile,
            "depth_instructions": of_depth,
        }
    ptx = result.asm["ptx"]
    return {
        "registers": int(found[1]),
        "spills": len(re.findall(r"\bSTL\b|\bLDL\b", assembly)),  # loads and stores
        "shared_bytes": result.metadata.shared,
        "matrix": sorted(name for name, pattern in MATRIX.items() if re.search(pattern, ptx)),
        "ahead": len(re.findall(r"cp\.async\.(?:cg|ca|bulk)", ptx)),
        **loop,
    }


def _tool(name, *args):
    return subprocess.run([TOOLS / name, *args], capture_output=True, text=True, check=True).stdout


def step(dtype, depth, spec=None, refs=False, exact=False, n=4096, with_ids=False):
    spec = spec or PairSpec()
    ids = torch.arange(n) if with_ids else None
    anchors = Side(torch.empty(n, depth, dtype=dtype), torch.arange(n), ids)
    candidates = Side(torch.empty(n, depth, dtype=dtype), torch.arange(n), ids) if refs else None
    if not exact:
        return lambda: backend.loss_and_gradient(anchors, candidates, spec, True, refs)
    term = some_term(n)

    def both():
        backend.row_statistics(anchors, candidates, spec)
        backend.embedding_gradient(anchors, candidates, spec, term, None if refs else term)

    return both


def counted_step(dtype, depth, spec=None, refs=False, n=4096):
    """Statistics beside losses and gradients, of anchors that count by weights."""
    anchors, *others = (Side(torch.empty(n, depth, dtype=dtype), torch.arange(n), None),) * 2
    how = spec or PairSpec(), True, refs, torch.empty(n), None, False
    return lambda: backend.counted_loss(anchors, others[0] if refs else None, *how)


def some_term(n):
    numbers = [torch.empty(n) for _ in range(6)]
    stats = RowStatistics(*numbers[:4], torch.arange(n), torch.arange(n), numbers[4])
    return Term(stats, numbers[5])


def learned_step(dtype, depth, spec, n=4096):
    side, options = Side(torch.empty(n, depth, dtype=dtype), torch.arange(n), None), torch.ones(3)
    options = options[: len(dataclasses.fields(spec.weighting))]

    def both():
        backend.learned_statistics(side, None, spec, options)
        backend.learned_gradient(side, None, spec, options, some_term(n), True, False)

    return both


def block_step(dtype, depth, n=4096):
    side, known = Side(torch.empty(n, depth, dtype=dtype), torch.arange(n), None), torch.empty(n)
    return lambda: backend.block_statistics(side, side, PairSpec(), Known(known, known))


def cases(variants, some=False):
    """Every mode with a depth for each of its tiles; every other variant once, if asked for."""
    for name, dtype in (
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
        ("tf32x3", torch.float32),
        ("tf32", torch.float32),
        ("fp64", torch.float64),
    ):
        mode = {"bf16": "half", "fp16": "half", "fp64": "float64"}.get(name, name)
        owner = tiles.TABLE[9][mode].owner
        depths = [*owner, 2 * max(owner)]
        if name == "fp16":  # compiled as bf16 is, with another instruction
            depths = depths[-2:]
        if some:
            some_of = {"bf16": depths[-3:], "tf32x3": depths[-2:], "fp16": [], "tf32": []}
            depths = some_of.get(name, depths[-1:])
        for depth in depths:
            yield f"{name}-D{depth}", "high" if name == "tf32" else "highest", step(dtype, depth)
    yield "ffma-D16", "highest", step(torch.float32, 16)
    half = torch.bfloat16
    for depth in () if some else (256, 1024):
        yield f"bf16-D{depth}-ids", "highest", step(half, depth, with_ids=True)
        yield f"bf16-D{depth}-few", "highest", step(half, depth, n=400)  # shared blocks of rows
    # The other losses: each where rows are held whole, one of each shape of sums by panels too.
    for rule in (Triplet,) if some else NATIVE_WEIGHTINGS:
        for depth in (128, 1024) if rule in (NTXent, NCA, Circle, Triplet) else (128,):
            if variants or depth == 1024:
                pair = PairSpec(rule(), SemiHardMining())  # with bounds on both sides
                yield f"bf16-D{depth}-{rule.__name__}", "highest", step(half, depth, pair)
    # Distances, whose rows are never held whole.
    for depth, distance in ((128, "euclidean"), (1024, "squared_euclidean")):
        if variants or depth == 128:
            rules = PairSpec(MultiSimilarity(), distance=distance)
            # As the table has them: of sm_90 what statistics take too.
            far = step(torch.float32, depth, rules, exact=variants or some)
            yield f"tf32x3-D{depth}-{distance}", "highest", far
    # Options that learn: sums are not bounded, and what weights add up to comes from panels.
    for depth, dtype, rule in ((128, torch.float32, MultiSimilarity), (1024, half, NTXent)):
        if variants or depth == 128:
            name = f"{'bf16' if dtype == half else 'tf32x3'}-D{depth}-learned"
            yield name, "highest", learned_step(dtype, depth, PairSpec(rule()))
    # A circle that is not bounded refers to exponents, not to similarities.
    for name, dtype in (("bf16", half), ("tf32x3", torch.float32), ("fp64", torch.float64)):
        if variants or (name == "tf32x3" and not some):
            circle = PairSpec(Circle(), SemiHardMining())
            yield f"{name}-D128-Circle-learned", "highest", learned_step(dtype, 128, circle)
            far = dataclasses.replace(circle, distance="euclidean")
            if dtype != half:  # of half rows the same kernels
                yield f"{name}-D128-Circle-euclidean", "highest", step(dtype, 128, far)
    hardest = PairSpec(MultiSimilarity(), TopKMining(8))
    for name, dtype in (("bf16", half), ("tf32x3", torch.float32), ("fp64", torch.float64)):
        if variants or name == "tf32x3":
            yield f"{name}-D128-hardest", "highest", step(dtype, 128, hardest)
    # A block of candidates, by hardest pairs that are known of all.
    if variants:
        yield "bf16-D128-block", "highest", block_step(half, 128)
    # Statistics of a step: of half rows beside exponentials that are kept.
    for depth in () if some else (128, 1024):
        yield f"bf16-D{depth}-counted", "highest", counted_step(half, depth)
    if not variants:
        return
    for rule in (NTXent, Triplet):
        pair = PairSpec(rule(), SemiHardMining())
        yield f"bf16-D128-{rule.__name__}-exact", "highest", step(half, 128, pair, exact=True)
    for n in (1, 70):  # sizes of 1 become constants
        for refs in (False, True):
            for exact in (False, True):
                depth = 1 if (n == 1) == exact else 300
                kind = "ffma" if depth <= tiles.SHALLOW else "fp32"
                name = f"{kind}-N{n}-D{depth}{'-refs' * refs}{'-exact' * exact}"
                run = step(torch.float32, depth, refs=refs, exact=exact, n=n)
                yield name, "highest", run
    raw = PairSpec(normalize=False)
    for depth in (128, 1024):
        yield f"bf16-D{depth}-refs", "highest", step(half, depth, refs=True)
        yield f"bf16-D{depth}-exact", "highest", step(half, depth, exact=True)
        yield f"bf16-D{depth}-exact-refs", "highest", step(half, depth, refs=True, exact=True)
        sharp = PairSpec(MultiSimilarity(beta=400.0))
        yield f"bf16-D{depth}-unbounded", "highest", step(half, depth, sharp)
        yield f"bf16-D{depth}-raw", "highest", step(half, depth, raw, exact=True)


WORKS: list[tuple] = []


def job(index):
    name, *work = WORKS[index]
    try:
        return name, compiled(*work)
    except Exception as error:  # the test fails on it, and shows it
        while error.__cause__ is not None:
            error = error.__cause__
        return name, {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    capability = int(sys.argv[1].removeprefix("sm_"))
    some = "--some" in sys.argv
    wanted = [name for name in sys.argv[2:] if name != "--some"]
    table = tiles.TABLE.get(capability // 10, tiles.TABLE[8])
    problem.tiles_of = lambda mode, device: table[mode]
    seen = set()
    for name, precision, run in cases(capability == 90 and not some, some):
        torch.set_float32_matmul_precision(precision)
        for kernel, args, keywords in recorded(run):
            key = (kernel.__name__, source_of(kernel, args, keywords).hash(), str(keywords))
            full = f"{kernel.__name__.removesuffix('_kernel')}/{name}"
            if key not in seen and (not wanted or any(w in full for w in wanted)):
                seen.add(key)
                WORKS.append((full, kernel, args, keywords, capability))
    # Forked, so that each inherits what was recorded.
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = dict(pool.imap(job, range(len(WORKS))))
    print(json.dumps({"triton": triton.__version__, "kernels": found}, indent=1))


if __name__ == "__main__":
    main()
