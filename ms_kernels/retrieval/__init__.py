"""How well rows retrieve rows of their label: Recall@K, MAP@R and R-precision, exactly.

>>> scores = ms_kernels.retrieval.retrieval_scores(embeddings, labels, ks=(1, 10))
>>> print(scores.recall[1], scores.map_at_r, scores.r_precision)
"""

from ms_kernels.retrieval.scores import (
    QueryScores,
    RetrievalScores,
    map_at_r,
    r_precision,
    recall_at_k,
    retrieval_scores,
)
from ms_kernels.retrieval.search import Neighbours, nearest

__all__ = [
    "Neighbours",
    "QueryScores",
    "RetrievalScores",
    "map_at_r",
    "nearest",
    "r_precision",
    "recall_at_k",
    "retrieval_scores",
]
