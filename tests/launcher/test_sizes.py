"""Batch sizes are no kernels of their own: a filling memory must not stutter for minutes."""

import torch
from steps import FULL, cost_of, step

import ms_kernels
from ms_kernels.rules.weighting import NTXent, Triplet

FEW = (40, 1000, 2500)
MANY = range(1, 2400, 16 if FULL else 48)  # so that each number of tiles is among them


def test_batch_sizes_compile_nothing(stand_in):
    """50 or 150 sizes of one kind, after three of them, for every way that rows are held."""
    for depth in (64, 512):
        for size in FEW:
            cost_of(stand_in, step(size, depth))
        for size in MANY:
            assert not cost_of(stand_in, step(size, depth)).compiled, size


def test_a_filling_memory_compiles_nothing(stand_in):
    for size in FEW:
        cost_of(stand_in, step(64, 64, m=size, ids=True))
    for size in MANY:
        assert not cost_of(stand_in, step(64, 64, m=size, ids=True)).compiled, size


def test_batch_sizes_of_other_losses_compile_nothing(stand_in):
    for rule in (NTXent(), Triplet()):
        given = {"loss": ms_kernels.pair_loss, "weighting": rule}
        for size in FEW:
            cost_of(stand_in, step(size, 64, **given))
        for size in range(1, 2400, 48):
            assert not cost_of(stand_in, step(size, 64, **given)).compiled, size


def test_options_compile_nothing(stand_in):
    """Numbers are no kernels of their own either."""
    cost_of(stand_in, step(70, 64))
    for options in ({"alpha": 1.0}, {"base": 0.0}, {"base": -0.5, "beta": 16.0}, {"epsilon": 0.0}):
        assert not cost_of(stand_in, step(70, 64, **options)).compiled, options


def test_row_statistics_of_any_size_compile_nothing(stand_in):
    def run(n):
        x = torch.zeros(n, 64)
        return lambda: ms_kernels.row_statistics(x, torch.arange(n) % 9, backend="triton")

    for size in FEW:
        cost_of(stand_in, run(size))
    for size in range(1, 2400, 48):
        assert not cost_of(stand_in, run(size)).compiled, size
