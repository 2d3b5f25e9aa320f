"""What the launches of all scans have in common."""

from typing import Any

from ms_kernels.backends.triton.problem import Problem


def arguments(problem: Problem) -> tuple[Any, Any, Any]:
    """Those of rows, of columns, and the constants that the kernels of this tile share."""
    rows, columns, tile = problem.rows, problem.columns, problem.tiles.scan
    constants = {
        "MODE": problem.mode,
        "DISTANCE": problem.distance,
        "ID_MODE": problem.id_mode,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": problem.piece(tile.block_k),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
    others = (columns.copy, columns.scale, columns.ids, problem.coefficients)
    return (rows.copy, rows.scale), others, constants
