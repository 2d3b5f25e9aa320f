"""Pair weights G_ij + G_ji of a tile, from similarities and the terms of both sides."""

import triton
import triton.language as tl

from ms_kernels.backends.triton.coefficients import (
    negative_base,
    negative_scale,
    positive_base,
    positive_scale,
)
from ms_kernels.backends.triton.forms import beyond, in_common, negative_summand, weight_of
from ms_kernels.backends.triton.mining_rules import is_positive
from ms_kernels.backends.triton.pairs import GIVEN, distinct, same_class
from ms_kernels.backends.triton.ranked import add_negatives, add_positives
from ms_kernels.backends.triton.terms import (
    NEG_ABOVE,
    NEG_BELOW,
    NEG_FACTOR,
    NEG_OFFSET,
    POS_BELOW,
    POS_CONSTANT,
    POS_FACTOR,
    POS_OFFSET,
    term,
)


@triton.jit
def negatives_of(
    sim,
    common,
    terms,
    at,
    padded,
    coefficients,
    AS_ROW: tl.constexpr,
    NEGATIVE: tl.constexpr,
    TWO_SIDED: tl.constexpr,
    FOLDED: tl.constexpr,
):
    """What one side adds if every pair of the tile is a negative."""
    kept = sim > term(terms, NEG_ABOVE, at, padded, AS_ROW)
    if TWO_SIDED:
        kept &= sim < term(terms, NEG_BELOW, at, padded, AS_ROW)
    factor = term(terms, NEG_FACTOR, at, padded, AS_ROW)
    if FOLDED or NEGATIVE == "sigmoid":  # fewer registers than a selection of products
        return tl.where(kept, factor, 0) * common
    else:
        weight = weight_of(
            sim - negative_base(coefficients),
            common,
            negative_scale(coefficients),
            term(terms, NEG_OFFSET, at, padded, AS_ROW),
            factor,
            coefficients,
            NEGATIVE,
            False,
        )
        return tl.where(kept, weight, 0)


@triton.jit
def positives_of(
    sim,
    common,
    terms,
    at,
    padded,
    coefficients,
    AS_ROW: tl.constexpr,
    POSITIVE: tl.constexpr,
    SIGN: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
):
    """The same of positives: dl/dS is SIGN dl/du."""
    kept = sim < term(terms, POS_BELOW, at, padded, AS_ROW)
    factor = SIGN * term(terms, POS_FACTOR, at, padded, AS_ROW)
    weight = weight_of(
        beyond(sim, positive_base(coefficients), SIGN),
        common,
        positive_scale(coefficients),
        term(terms, POS_OFFSET, at, padded, AS_ROW),
        factor,
        coefficients,
        POSITIVE,
        HAS_OFFSET,
    )
    if SIGN == 1:
        weight += term(terms, POS_CONSTANT, at, padded, AS_ROW)
    return tl.where(kept, weight, 0)


@triton.jit
def pair_weights(
    sim,
    row_terms,
    row_thresholds,
    row_pulls,
    row_first_rank,
    row_ids,
    first,
    last,
    rows,
    row_padded,
    column_terms,
    column_thresholds,
    column_pulls,
    column_first_rank,
    ranks_in_use,
    column_ids,
    columns,
    column_padded,
    coefficients,
    POSITIVES: tl.constexpr,
    HAS_ROW: tl.constexpr,
    HAS_COLUMN: tl.constexpr,
    FOLDED: tl.constexpr,
    ID_MODE: tl.constexpr,
    NEGATIVE: tl.constexpr,
    POSITIVE: tl.constexpr,
    SIGN: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    TWO_SIDED: tl.constexpr,
):
    """Weights of a tile; without POSITIVES it is known to hold none. Padding weighs nothing."""
    weight = tl.zeros(sim.shape, sim.dtype)
    if NEGATIVE == "ranked":
        if HAS_ROW:
            weight = add_negatives(
                weight,
                sim,
                row_terms,
                row_thresholds,
                ranks_in_use,
                rows,
                row_padded,
                True,
                TWO_SIDED,
            )
        if HAS_COLUMN:
            weight = add_negatives(
                weight,
                sim,
                column_terms,
                column_thresholds,
                ranks_in_use,
                columns,
                column_padded,
                False,
                TWO_SIDED,
            )
    else:
        if FOLDED:
            common = negative_summand(sim, 0, coefficients, NEGATIVE, True)
        else:
            u = sim - negative_base(coefficients)
            common = in_common(u, negative_scale(coefficients), NEGATIVE, False)
        if HAS_ROW:
            weight += negatives_of(
                sim,
                common,
                row_terms,
                rows,
                row_padded,
                coefficients,
                True,
                NEGATIVE,
                TWO_SIDED,
                FOLDED,
            )
        if HAS_COLUMN:
            weight += negatives_of(
                sim,
                common,
                column_terms,
                columns,
                column_padded,
                coefficients,
                False,
                NEGATIVE,
                TWO_SIDED,
                FOLDED,
            )
    if POSITIVES:
        same = same_class(tl.load(first + rows), tl.load(last + rows), columns)
        positive = tl.zeros(sim.shape, sim.dtype)
        if POSITIVE == "ranked":
            if HAS_ROW:
                positive = add_positives(
                    positive,
                    row_pulls,
                    row_first_rank,
                    ranks_in_use,
                    rows,
                    columns,
                    row_padded,
                    True,
                )
            if HAS_COLUMN:
                positive = add_positives(
                    positive,
                    column_pulls,
                    column_first_rank,
                    ranks_in_use,
                    columns,
                    rows,
                    column_padded,
                    False,
                )
        else:
            u = beyond(sim, positive_base(coefficients), SIGN)
            common = in_common(u, positive_scale(coefficients), POSITIVE, HAS_OFFSET)
            if HAS_ROW:
                positive += positives_of(
                    sim,
                    common,
                    row_terms,
                    rows,
                    row_padded,
                    coefficients,
                    True,
                    POSITIVE,
                    SIGN,
                    HAS_OFFSET,
                )
            if HAS_COLUMN:
                positive += positives_of(
                    sim,
                    common,
                    column_terms,
                    columns,
                    column_padded,
                    coefficients,
                    False,
                    POSITIVE,
                    SIGN,
                    HAS_OFFSET,
                )
        positive = tl.where(is_positive(sim, same, coefficients), positive, 0)
        weight = tl.where(same, positive, weight)
        weight = tl.where(distinct(rows, columns, row_ids, column_ids, ID_MODE), weight, 0)
    elif ID_MODE == GIVEN:
        weight = tl.where(distinct(rows, columns, row_ids, column_ids, ID_MODE), weight, 0)
    return weight
