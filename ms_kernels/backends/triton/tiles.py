"""Tile sizes, stages and warps of every kernel: the one table.

Sizes are what compiles without spilling and fits shared memory on sm_80 to sm_100; the figures that
a compiler reports for each row are kept in tests/triton_resources.json.
"""

import functools
import importlib.metadata
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ms_kernels.settings import float32_products

# How products are formed: operands, and what they cost in accuracy.
#   float64, half       exact products, accumulated in float64, float32
#   half_in_float32     the same for the interpreter, whose bfloat16 products are wrong
#   tf32x3              float32 from three tf32 products
#   tf32                float32 operands rounded to 10 bits
#   float32             without tensor cores, for rows of at most SHALLOW numbers
MODES = ("half", "tf32x3", "tf32", "float64")  # those that can be tuned
# Up to this depth float32 products cost nothing beside the rest, and their sums are so short that
# what a split into tf32 numbers leaves out would show.
SHALLOW = 16

# Of the kernels: a tuned file of other kernels is not read.
VERSION = 3
# Of the compute capability: earlier GPUs have no bfloat16 and no asynchronous copies.
LEAST_MAJOR = 8


class Tile(NamedTuple):
    block_m: int
    block_n: int
    block_k: int  # piece of the depth, or of the whole depth that a program owns
    warps: int
    stages: int


class Tiles(NamedTuple):
    """Tiles of one mode on one kind of device."""

    scan: Tile  # positive and negative scan, positive finish
    weights: Tile  # of a panel
    product: Tile  # panel by embeddings
    owner: dict[int, Tile]  # greatest depth -> the kernel that holds rows whole
    # The gradient from kept exponentials, of half rows: its rows, columns and piece of the depth.
    # Of rows and columns as many as the scan has, if it has fewer.
    stashed: Tile | None = None
    # The scans of a step of the Multi-Similarity loss, whose kernels need the fewest registers.
    lean: Tile | None = None

    @property
    def block(self) -> int:
        """What rows are padded to a multiple of: every block divides it."""
        every = (self.scan, self.weights, self.product, self.lean, *self.owner.values())
        return max(size for tile in every if tile is not None for size in tile[:2])


_HALF = Tiles(
    scan=Tile(64, 128, 64, 8, 3),
    weights=Tile(64, 64, 64, 8, 3),
    product=Tile(64, 64, 128, 8, 3),
    owner={
        32: Tile(64, 64, 32, 4, 2),
        64: Tile(64, 64, 64, 4, 2),
        128: Tile(64, 64, 128, 4, 2),
        256: Tile(64, 32, 256, 8, 2),
    },
    stashed=Tile(64, 64, 128, 8, 3),
)
# A warp group takes 64 rows: with 8 warps two of them would compute the same ones. Of more rows a
# thread joins its sums of a column before it sends them to another.
_HALF_SM90 = _HALF._replace(
    lean=Tile(128, 64, 64, 4, 3),
    product=Tile(128, 64, 128, 8, 3),
    owner={
        **_HALF.owner,
        128: Tile(64, 128, 128, 4, 2),
        256: Tile(64, 32, 256, 4, 2),
    },
    stashed=Tile(128, 64, 256, 8, 4),
)
_TF32X3 = Tiles(
    scan=Tile(64, 64, 32, 8, 2),
    weights=Tile(64, 64, 32, 8, 2),
    product=Tile(64, 32, 64, 8, 2),
    owner={32: Tile(64, 32, 32, 8, 1), 64: Tile(64, 32, 64, 8, 1)},
)
_TF32 = Tiles(
    scan=Tile(64, 128, 32, 8, 3),
    weights=Tile(64, 64, 32, 8, 3),
    product=Tile(64, 32, 128, 8, 2),
    owner={32: Tile(64, 32, 32, 8, 1), 64: Tile(64, 32, 64, 8, 1), 128: Tile(64, 32, 128, 8, 1)},
)
_FLOAT64 = Tiles(
    scan=Tile(32, 32, 32, 4, 2),
    weights=Tile(32, 32, 32, 4, 2),
    product=Tile(32, 16, 32, 4, 2),
    owner={32: Tile(16, 16, 32, 4, 1)},
)
# Without the warp-group products of sm_90 the three sums of a tile crowd the registers.
_TF32X3_SM80 = Tiles(
    scan=Tile(32, 64, 32, 4, 2),
    weights=Tile(32, 32, 32, 4, 2),
    product=Tile(32, 32, 64, 4, 2),
    owner={32: Tile(32, 32, 32, 4, 1), 64: Tile(32, 32, 64, 4, 1)},
)
_COMMON = {
    **{"half": _HALF, "tf32x3": _TF32X3, "tf32": _TF32, "float64": _FLOAT64},
    "float32": Tiles(
        scan=Tile(32, 32, 16, 8, 1),
        weights=Tile(32, 32, 16, 8, 1),
        product=Tile(32, 32, 16, 8, 1),
        owner={16: Tile(32, 32, 16, 8, 1)},
    ),
}
# By the major number of the compute capability; others are taken for the eldest.
TABLE = {
    8: {**_COMMON, "tf32x3": _TF32X3_SM80},
    9: {**_COMMON, "half": _HALF_SM90},
    10: {
        **_COMMON,
        "half": _HALF._replace(product=Tile(64, 64, 128, 4, 3)),
        "float64": _FLOAT64._replace(scan=Tile(32, 32, 16, 4, 2)),
    },
}

# Small enough for the interpreter, and several tiles even in small batches.
_INTERPRETED = Tiles(
    scan=Tile(32, 64, 32, 1, 1),
    weights=Tile(32, 32, 32, 1, 1),
    product=Tile(32, 32, 32, 1, 1),
    owner={16: Tile(32, 16, 16, 1, 1), 64: Tile(32, 16, 64, 1, 1)},
    stashed=Tile(32, 32, 32, 1, 1),
)


def interpreted() -> bool:
    """Kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def mode_of(
    dtype: torch.dtype, depth: int, wide: bool = False, exact: bool = False
) -> tuple[str, torch.dtype]:
    """The mode for embeddings of a dtype and depth, and the dtype of the operands.

    `wide`: weights may be of any size. Those of float16 rows are tf32 numbers then, of as many bits
    and more range; so are the rows, without loss.
    float32 products follow torch.get_float32_matmul_precision(): "highest" are accurate to float32,
    "high" are tf32, "medium" take rows rounded to bfloat16; not so `exact` ones, of which small
    differences are asked for.
    """
    if dtype == torch.float64:
        return "float64", dtype
    if dtype == torch.float32:
        precision = "highest" if exact else float32_products()
        if precision == "highest":
            return "float32" if depth <= SHALLOW else "tf32x3", dtype
        if precision == "high":
            return "tf32", dtype
        dtype = torch.bfloat16
    if dtype == torch.float16 and wide:
        return "tf32", torch.float32
    return "half_in_float32" if interpreted() else "half", dtype


def standard_tiles(mode: str, major: int) -> Tiles:
    """The table's row for a major number of the compute capability."""
    return TABLE.get(major, TABLE[LEAST_MAJOR])[mode]


@functools.cache
def tiles_of(mode: str, device: torch.device) -> Tiles:
    """What the tuner found for this model of GPU (`tuned_file`), else the table's row."""
    if interpreted():
        return _INTERPRETED
    reason = unsupported(device)
    if reason is not None:  # of several GPUs the current one may be newer
        raise ValueError(f"embeddings: on {device}, {reason}; use backend='panels'")
    standard = standard_tiles(mode, torch.cuda.get_device_capability(device)[0])
    if mode not in MODES:
        return standard
    return tuned(tuned_file(torch.cuda.get_device_name(device)), mode, standard)


def unsupported(device: torch.device) -> str | None:
    """None when the kernels run on this GPU, else why not."""
    major, minor = torch.cuda.get_device_capability(device)
    if major >= LEAST_MAJOR:
        return None
    return (
        f"the kernels need a GPU of compute capability {LEAST_MAJOR}.0 or newer, "
        f"this is {major}.{minor}"
    )


def tuned(file: Path | None, mode: str, standard: Tiles) -> Tiles:
    """The tuner's tiles; the standard ones without a file, or, with a warning, if it is no use."""
    try:
        if file is None or not file.exists():
            return standard
        tiles = unpack(json.loads(file.read_text())[mode], standard)
        if agree(tiles):
            return tiles
        reason = "its blocks do not fit the kernels"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    warnings.warn(
        f"ms_kernels: {file} holds no usable tiles for {mode} ({reason}), the standard ones are "
        "used; delete the file or run python -m ms_kernels tune",
        stacklevel=2,
    )
    return standard


def tuned_file(gpu: str) -> Path | None:
    """Where `python -m ms_kernels tune` keeps the tiles of a model of GPU; None without a home."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(folder) if Path(folder).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    # Another compiler may spill where this one did not.
    triton = importlib.metadata.version("triton")
    try:
        package = importlib.metadata.version("ms_kernels")
    except importlib.metadata.PackageNotFoundError:
        package = "source"
    of = f"{package}-{VERSION}-triton-{triton}"
    name = re.sub(r"[^\w.-]", "-", f"tiles-{gpu}-{of}.json")
    return cache / "ms_kernels" / name


def pack(tiles: Tiles) -> dict[str, Any]:
    return {**tiles._asdict(), "owner": {str(d): t for d, t in tiles.owner.items()}}


def unpack(packed: dict[str, Any], standard: Tiles) -> Tiles:
    kernels = {name: Tile(*packed[name]) for name in ("scan", "weights", "product")}
    some: Any = {
        name: None if packed[name] is None else Tile(*packed[name]) for name in ("stashed", "lean")
    }
    owner = {int(depth): Tile(*tile) for depth, tile in packed["owner"].items()}
    return standard._replace(**kernels, owner=owner, **some)


def agree(tiles: Tiles) -> bool:
    """Whether the blocks are such as the kernels and the compiler take, and divide each other.

    All that compute similarities must use the same instructions, which from 64 rows are others: a
    pair has the same bits everywhere.
    """
    scan, stashed = tiles.scan, tiles.stashed
    least = min(*scan[:2], *(tiles.lean or scan)[:2])
    similar = (scan, tiles.weights, *tiles.owner.values(), *filter(None, (tiles.lean,)))
    every = (*similar, tiles.product, *filter(None, (stashed,)))
    return (
        all(type(number) is int for tile in every for number in tile)
        and all(_is_power(n, 16, 1024) for tile in every for n in tile[:3])
        and all(_is_power(tile.warps, 1, 16) and 1 <= tile.stages <= 8 for tile in every)
        and all(_is_power(depth, 16, 1024) for depth in tiles.owner)
        and least >= 32  # rows that one program copies, or merges, at once
        and len({tile.block_m >= 64 and tile.warps >= 4 for tile in similar}) == 1
    )


def _is_power(number: int, least: int, most: int) -> bool:
    return least <= number <= most and number & (number - 1) == 0


def owner_of(tiles: Tiles, depth: int) -> Tile | None:
    """The tile whose program holds rows of this depth whole; None if that would spill."""
    fitting = [limit for limit in tiles.owner if limit >= depth]
    return tiles.owner[min(fitting)] if fitting else None
