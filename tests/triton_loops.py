"""What a compiled Triton kernel does for a tile: the instructions of its inner loop.

Of a kernel that visits tiles with and without a mask the shorter loop is that without, where nearly
all the time goes; the loop over the depth inside it is counted apart.
"""

import re

from sass import Code

SHAPE = re.compile(r"warpsPerCTA = \[([^\]]*)\], instrShape = \[([^\]]*)\]")


def inner_loop(assembly):
    """Instructions of a warp for one tile without a mask, without those of the loop over the depth,
    and those of that loop, 0 where it is unrolled; None where no loop multiplies matrices."""
    code = Code(assembly)
    whole = [loop for loop in code.loops if code.matrix(loop)]
    outer = [loop for loop in whole if not any(other.holds(loop) for other in whole)]
    if not outer:
        return None, None
    tile = min(outer, key=lambda loop: loop.size)
    of_depth = sum(loop.size for loop in whole if tile.holds(loop))
    return tile.size - of_depth, of_depth


def shapes(ttgir):
    """How warps share the tile of each product, and the shape of its instruction."""
    return sorted({f"warps {warps}, {shape}" for warps, shape in SHAPE.findall(ttgir)})
