"""Launches the search for the hardest negatives, where these bound what mining keeps."""

from typing import Any

import torch
import triton
from torch import Tensor

from ms_kernels.backends.triton.hardest import hardest_scan_kernel, kth_hardest_kernel
from ms_kernels.backends.triton.launch import arguments
from ms_kernels.backends.triton.problem import BUSY, Problem
from ms_kernels.backends.triton.tape import launch_kernel

AT_ONCE = 16


def scan_hardest(problem: Problem, k: int) -> Tensor:
    """(padded) similarity of each anchor's k-th hardest negative, -inf of one with fewer.

    Lists of the programs that share a block of rows are joined: a few numbers for each row, and of
    many rows no block is shared.
    """
    rows, columns, tile = problem.rows, problem.columns, problem.tiles.scan
    new: Any = {"dtype": rows.dtype, "device": rows.device}
    sides, others, constants = arguments(problem)
    row_blocks = rows.padded // tile.block_m
    column_blocks = triton.cdiv(columns.count, tile.block_n)
    tiles = triton.cdiv(column_blocks, max(1, BUSY // row_blocks)) or 1
    splits = max(1, triton.cdiv(column_blocks, tiles))
    slots = triton.next_power_of_2(k)
    lists = torch.empty(splits, rows.padded, slots, **new)
    hardest = torch.empty(rows.padded, **new)
    launch_kernel(
        hardest_scan_kernel,
        (row_blocks, splits),
        *sides,
        rows.ids,
        problem.first,
        problem.last,
        *others[:3],
        lists,
        rows.count,
        columns.count,
        rows.stride,
        column_blocks,
        tiles,
        rows.padded,
        K=k,
        SLOTS=slots,
        **constants,
    )
    launch_kernel(
        kth_hardest_kernel,
        (rows.padded // AT_ONCE,),
        lists,
        hardest,
        splits,
        rows.padded,
        K=k,
        SLOTS=slots,
        BLOCK=AT_ONCE,
    )
    return hardest
