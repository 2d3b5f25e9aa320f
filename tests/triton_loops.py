"""What a compiled Triton kernel does for a tile: the instructions of its inner loop.

A loop ends in a branch back to its beginning. Of a kernel that visits tiles with and without a mask
the shorter loop is that without, where nearly all the time goes; the loop over the depth inside it
is counted apart.
"""

import re

MATRIX = re.compile(r"\b(HGMMA|HMMA|UTCHMMA|DMMA)\b")
SHAPE = re.compile(r"warpsPerCTA = \[([^\]]*)\], instrShape = \[([^\]]*)\]")


def loops(assembly):
    """(first, last) instruction of each loop, and all instructions."""
    labels, instructions = {}, []
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(found[1])
    back = []
    for place, text in enumerate(instructions):
        target = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", text)
        if target and labels.get(target[1], place + 1) <= place:
            back.append((labels[target[1]], place))
    return back, instructions


def inner_loop(assembly):
    """Instructions of a warp for one tile without a mask, without those of the loop over the depth;
    None where no loop multiplies matrices."""
    back, instructions = loops(assembly)

    def within(inner, outer):
        return inner != outer and outer[0] <= inner[0] and inner[1] <= outer[1]

    def multiplies(loop):
        return any(MATRIX.search(text) for text in instructions[loop[0] : loop[1] + 1])

    whole = [loop for loop in back if multiplies(loop)]
    outer = [loop for loop in whole if not any(within(loop, other) for other in whole)]
    if not outer:
        return None
    first, last = min(outer, key=lambda loop: loop[1] - loop[0])
    depth = [loop for loop in whole if within(loop, (first, last))]
    return last + 1 - first - sum(end + 1 - begin for begin, end in depth)


def shapes(ttgir):
    """How warps share the tile of each product, and the shape of its instruction."""
    return sorted({f"warps {warps}, {shape}" for warps, shape in SHAPE.findall(ttgir)})
