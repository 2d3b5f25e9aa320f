"""Pair weights G_ij + G_ji of a tile, from similarities and the terms of both sides.

`terms` points to five arrays of `padded` entries: neg_threshold, pos_threshold, neg_offset,
pos_offset, dloss. Offsets are softplus of the log-sum-exps; a muted row passes no threshold.
With RULES (`family.py`) they are eight: neg_above, pos_below, neg_offset, pos_offset, and, times
dloss, the factor of negatives; neg_below; factor and constant of positives, times dloss. With
TRIPLET lists follow (`triplet.py`).
"""

import triton
import triton.language as tl

from ms_kernels.backends.triton.family import BINOMIAL, TRIPLET
from ms_kernels.backends.triton.family import negative_weight as family_negative
from ms_kernels.backends.triton.family import positive_weight as family_positive
from ms_kernels.backends.triton.multi_similarity import (
    INFINITY,
    is_positive,
    negative_exponential,
    negative_threshold,
    negative_weight,
    positive_threshold,
    positive_weight,
    softplus,
)
from ms_kernels.backends.triton.pairs import GIVEN, distinct, same_class
from ms_kernels.backends.triton.triplet import add_negatives, add_positives


@triton.jit
def negative_weights(
    sim,
    row_terms,
    rows,
    row_padded,
    column_terms,
    columns,
    column_padded,
    coefficients,
    HAS_ROW: tl.constexpr,
    HAS_COLUMN: tl.constexpr,
    BOUNDED: tl.constexpr,
):
    """Weights of a tile as if every pair in it were a negative.

    A kept negative weighs at most 1 for each side. The rest is cut there: a pair that the scan did
    not count, if rounding let it pass here, must not weigh more than any pair can.
    """
    weight = tl.zeros(sim.shape, sim.dtype)
    if BOUNDED:  # one exponential serves both sides
        e = negative_exponential(sim, sim, coefficients, BOUNDED)
    if HAS_ROW:
        threshold = tl.load(row_terms + rows)[:, None]
        offset = tl.load(row_terms + 2 * row_padded + rows)[:, None]
        dloss = tl.load(row_terms + 4 * row_padded + rows)[:, None]
        if BOUNDED:
            weight += tl.where(sim > threshold, dloss * tl.minimum(e * tl.exp(-offset), 1), 0)
        else:
            weight += negative_weight(sim, threshold, offset, dloss, coefficients)
    if HAS_COLUMN:
        threshold = tl.load(column_terms + columns)[None, :]
        offset = tl.load(column_terms + 2 * column_padded + columns)[None, :]
        dloss = tl.load(column_terms + 4 * column_padded + columns)[None, :]
        if BOUNDED:
            weight += tl.where(sim > threshold, dloss * tl.minimum(e * tl.exp(-offset), 1), 0)
        else:
            weight += negative_weight(sim, threshold, offset, dloss, coefficients)
    return weight


@triton.jit
def one_side(terms, at, AS_ROW: tl.constexpr):
    """An array of terms, shaped to broadcast over a tile of rows by columns."""
    found = tl.load(terms + at)
    return found[:, None] if AS_ROW else found[None, :]


@triton.jit
def family_negatives(
    sim, slope, terms, at, padded, coefficients, AS_ROW: tl.constexpr, RULES: tl.constexpr
):
    """What one side adds if every pair is a negative; `slope` is what all sides have in common."""
    factor = one_side(terms, 4 * padded + at, AS_ROW)
    above = one_side(terms, at, AS_ROW)
    below = one_side(terms, 5 * padded + at, AS_ROW)
    if RULES == BINOMIAL:
        return tl.where((sim > above) & (sim < below), factor, 0) * slope
    else:
        offset = one_side(terms, 2 * padded + at, AS_ROW)
        weight = family_negative(sim, offset, factor, coefficients, RULES)
        return tl.where((sim > above) & (sim < below), weight, 0)


@triton.jit
def family_positives(
    sim, slope, terms, at, padded, coefficients, AS_ROW: tl.constexpr, RULES: tl.constexpr
):
    factor = one_side(terms, 6 * padded + at, AS_ROW)
    kept = sim < one_side(terms, padded + at, AS_ROW)
    if RULES == BINOMIAL:
        return tl.where(kept, factor, 0) * slope
    else:
        offset = one_side(terms, 3 * padded + at, AS_ROW)
        constant = one_side(terms, 7 * padded + at, AS_ROW)
        return tl.where(
            kept, family_positive(sim, offset, factor, constant, coefficients, RULES), 0
        )


@triton.jit
def pair_weights(
    sim,
    row_terms,
    row_ids,
    first,
    last,
    rows,
    row_padded,
    column_terms,
    column_ids,
    columns,
    column_padded,
    coefficients,
    POSITIVES: tl.constexpr,
    HAS_ROW: tl.constexpr,
    HAS_COLUMN: tl.constexpr,
    BOUNDED: tl.constexpr,
    ID_MODE: tl.constexpr,
    RULES: tl.constexpr,
):
    """Weights of a tile; without POSITIVES it is known to hold none. Padding weighs nothing."""
    weight = tl.zeros(sim.shape, sim.dtype)
    if RULES == TRIPLET:
        if HAS_ROW:
            weight = add_negatives(weight, sim, row_terms, rows, row_padded, coefficients, True)
        if HAS_COLUMN:
            weight = add_negatives(
                weight, sim, column_terms, columns, column_padded, coefficients, False
            )
    elif RULES != 0:
        slope = sim
        if RULES == BINOMIAL:
            slope = family_negative(sim, 0, 1, coefficients, RULES)
        if HAS_ROW:
            weight += family_negatives(
                sim, slope, row_terms, rows, row_padded, coefficients, True, RULES
            )
        if HAS_COLUMN:
            weight += family_negatives(
                sim, slope, column_terms, columns, column_padded, coefficients, False, RULES
            )
    else:
        weight = negative_weights(
            sim,
            row_terms,
            rows,
            row_padded,
            column_terms,
            columns,
            column_padded,
            coefficients,
            HAS_ROW,
            HAS_COLUMN,
            BOUNDED,
        )
    if POSITIVES:
        same = same_class(tl.load(first + rows), tl.load(last + rows), columns)
        positive = tl.zeros(sim.shape, sim.dtype)
        if RULES == TRIPLET:
            if HAS_ROW:
                positive = add_positives(
                    positive, row_terms, rows, columns, row_padded, coefficients, True
                )
            if HAS_COLUMN:
                positive = add_positives(
                    positive, column_terms, columns, rows, column_padded, coefficients, False
                )
        elif RULES != 0:
            if RULES == BINOMIAL:
                slope = family_positive(sim, 0, 1, 0, coefficients, RULES)
            if HAS_ROW:
                positive += family_positives(
                    sim, slope, row_terms, rows, row_padded, coefficients, True, RULES
                )
            if HAS_COLUMN:
                positive += family_positives(
                    sim, slope, column_terms, columns, column_padded, coefficients, False, RULES
                )
        else:
            if HAS_ROW:
                threshold = tl.load(row_terms + row_padded + rows)[:, None]
                offset = tl.load(row_terms + 3 * row_padded + rows)[:, None]
                dloss = tl.load(row_terms + 4 * row_padded + rows)[:, None]
                positive += positive_weight(sim, threshold, offset, dloss, coefficients)
            if HAS_COLUMN:
                threshold = tl.load(column_terms + column_padded + columns)[None, :]
                offset = tl.load(column_terms + 3 * column_padded + columns)[None, :]
                dloss = tl.load(column_terms + 4 * column_padded + columns)[None, :]
                positive += positive_weight(sim, threshold, offset, dloss, coefficients)
        positive = tl.where(is_positive(sim, same, coefficients), positive, 0)
        weight = tl.where(same, positive, weight)
        weight = tl.where(distinct(rows, columns, row_ids, column_ids, ID_MODE), weight, 0)
    elif ID_MODE == GIVEN:
        weight = tl.where(distinct(rows, columns, row_ids, column_ids, ID_MODE), weight, 0)
    return weight


@triton.jit(do_not_specialize=["N"])
def read_terms_kernel(
    hardest_positive,  # (N) statistics and incoming gradient, in the caller's order
    hardest_negative,
    pos_lse,
    neg_lse,
    dloss,
    order,
    coefficients,
    terms,  # (5, padded) out
    N,
    padded,
    BLOCK: tl.constexpr,
):
    """One program turns the saved statistics of BLOCK rows into terms."""
    T: tl.constexpr = terms.dtype.element_ty
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    present = k < N
    at = tl.load(order + k, mask=present, other=0).to(tl.int64)
    z = tl.load(neg_lse + at, mask=present, other=0).to(T)
    muted = (present == 0) | ((z == z) == 0)
    low = negative_threshold(
        tl.load(hardest_positive + at, mask=present, other=0).to(T), coefficients
    )
    high = positive_threshold(
        tl.load(hardest_negative + at, mask=present, other=0).to(T), coefficients
    )
    neg_offset = softplus(z)
    pos_offset = softplus(tl.load(pos_lse + at, mask=present, other=0).to(T))
    weight = tl.load(dloss + at, mask=present, other=0).to(T)
    tl.store(terms + k, tl.where(muted, INFINITY, low), mask=k < padded)
    tl.store(terms + padded + k, tl.where(muted, -INFINITY, high), mask=k < padded)
    tl.store(terms + 2 * padded + k, tl.where(muted, 0, neg_offset), mask=k < padded)
    tl.store(terms + 3 * padded + k, tl.where(muted, 0, pos_offset), mask=k < padded)
    tl.store(terms + 4 * padded + k, tl.where(muted, 0, weight), mask=k < padded)
