"""A loss of the family by name, with its mining, a memory if asked, and across all processes."""

from dataclasses import fields
from typing import Any

import ms_kernels
from examples.retrieval.options import Options
from examples.retrieval.refusal import Refusal
from ms_kernels import CrossBatchMemory, PairLoss
from ms_kernels.distributed import DistributedLoss
from ms_kernels.rules import softmax

LOSSES: dict[str, Any] = {
    "ms": ms_kernels.MultiSimilarity,
    "contrastive": ms_kernels.Contrastive,
    "binomial": ms_kernels.BinomialDeviance,
    "bin-lifted": ms_kernels.BinLifted,
    "lifted": ms_kernels.LiftedStructure,
    "ntxent": softmax.NTXent,
    "npair": softmax.NPair,
    "nca": softmax.NCA,
    "supcon": softmax.SupCon,
    "decoupled": softmax.DecoupledContrastive,
    "circle": softmax.Circle,
    "triplet": ms_kernels.Triplet,
    "siglip": ms_kernels.SigLIP,
    "histogram": ms_kernels.Histogram,
}
MININGS: dict[str, Any] = {
    "none": ms_kernels.NoMining,
    "ms": ms_kernels.MultiSimilarityMining,
    "hardest": ms_kernels.HardestMining,
    "semihard": ms_kernels.SemiHardMining,
    "threshold": ms_kernels.ThresholdMining,
    "top-k": ms_kernels.TopKMining,
}


def criterion_of(options: Options) -> DistributedLoss:
    """The loss of the global batch; without other processes, of the batch."""
    mining = options.resolved(options.device).mining
    assert mining is not None
    rule = _rule("--loss", LOSSES[options.loss], options.loss, options.loss_options)
    mined = _rule("--mining", MININGS[mining], mining, options.mining_options)
    try:
        loss = PairLoss(rule, mined)
        if not options.memory:
            return DistributedLoss(loss)
        warmup = options.memory_warmup
        return DistributedLoss(CrossBatchMemory(loss, options.dim, options.memory, warmup=warmup))
    except (TypeError, ValueError) as error:
        raise Refusal(f"--loss, --mining, --memory: {error}") from error


def _rule(option: str, kind: Any, name: str, given: dict[str, float]) -> Any:
    known = {field.name: field.type for field in fields(kind)}
    unknown = [key for key in given if key not in known]
    if unknown:
        raise Refusal(
            f"{option}-option: expected options of {name}, which are {', '.join(known) or 'none'}; "
            f"got {', '.join(unknown)}"
        )
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise Refusal(f"{option}-option: {error}") from error
