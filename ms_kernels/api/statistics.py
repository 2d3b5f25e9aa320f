"""Statistics of each anchor, without a loss."""

from torch import Tensor

from ms_kernels.api import road
from ms_kernels.api.counting import check_ignore_label, without_label
from ms_kernels.api.hints import names_the_way
from ms_kernels.checks import check_pairs
from ms_kernels.reference import ALPHA, BASE, BETA, RowStatistics
from ms_kernels.rules.made import options_of
from ms_kernels.rules.mining import NO_MINING, Mining, MultiSimilarityMining, mining_of
from ms_kernels.rules.weighting import MultiSimilarity, Weighting


@names_the_way
def row_statistics(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    weighting: Weighting | None = None,
    mining: Mining | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    alpha: float = ALPHA,
    beta: float = BETA,
    base: float = BASE,
    epsilon: float | None = MultiSimilarityMining.epsilon,
    max_positive_similarity: float | None = None,
    normalize: bool = True,
    distance: str | None = None,
    backend: str = "auto",
    ignore_label: int | None = None,
) -> RowStatistics:
    """Hardest pairs, sums over kept pairs and their numbers of each anchor, (N,) each: constants.

    Of the MS loss pos_sum is log sum exp(-alpha (S - base)) over the kept positives, neg_sum is
    log sum exp(beta (S - base)) over the kept negatives, -inf where none is kept; the loss of an
    anchor is softplus(pos_sum) / alpha + softplus(neg_sum) / beta. `RowStatistics` and the
    docstrings of the rules have the others.

    Args:
        weighting: a rule of this package. Default: MultiSimilarity(alpha, beta, base).
        mining: a rule of this package. Default: with `weighting` NoMining(), else that of epsilon.
        The rest as in `multi_similarity_loss`.

    Returns:
        `RowStatistics`, float64 for float64 embeddings, else float32; counts are int64.

    Raises:
        TypeError, ValueError: before any work, for an argument that does not fit.
    """
    usual = MultiSimilarity.alpha, MultiSimilarity.beta, MultiSimilarity.base
    slack_given = epsilon != MultiSimilarityMining.epsilon
    if weighting is not None and (slack_given or (alpha, beta, base) != usual):
        raise ValueError(
            "alpha, beta, base, epsilon: expected none because weighting was given, got "
            f"{alpha}, {beta}, {base}, {epsilon}; they are options of the rules"
        )
    if mining is not None and slack_given:
        raise ValueError(
            f"epsilon: expected none because mining was given, got {epsilon}; use "
            "mining=MultiSimilarityMining(epsilon)"
        )
    if mining is None:
        mining = mining_of(epsilon) if weighting is None else NO_MINING
    if weighting is None:
        weighting = MultiSimilarity(alpha, beta, base)
    shared = options_of(max_positive_similarity, normalize, distance)
    loss = road.loss_of(weighting, mining, shared, backend)
    if weighting.learned:
        names = ", ".join(weighting.learned)
        raise TypeError(
            f"{names}: expected a number, got a tensor; statistics are constants: use .item(), or "
            "return_statistics=True of a loss whose options learn"
        )
    if loss.spec is None:
        raise ValueError(road.no_statistics("weighting, mining", weighting, mining))
    check_ignore_label(ignore_label)
    pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, ids, ref_ids, one_dtype=False)
    return road.row_statistics(loss, without_label(pairs, ignore_label))
