"""k-nearest-neighbour vote on frozen features."""

import torch
from torch import Tensor
from torch.nn import functional as F

from anomaly_lib.errors import UserError
from anomaly_lib.metrics.names import KNN_METRICS


def knn_vote(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, *, k: int = 5, metric: str = "cosine", chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """(class of each query [Q], share of its k neighbours in each class [Q, C]); equal votes go to the smallest class
    index.
    """
    if metric not in KNN_METRICS:
        raise UserError(f"unknown k-NN metric {metric!r}; choose from {', '.join(KNN_METRICS)}")
    if not 1 <= k <= len(bank):
        raise UserError(f"k = {k} neighbours from a bank of {len(bank)} samples: choose k between 1 and {len(bank)}")
    if metric == "cosine":
        bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    classes = int(bank_labels.max()) + 1
    votes = []
    for part in queries.split(chunk):
        if metric == "cosine":
            distance = -part @ bank.T  # [q, N]
        else:
            distance = torch.cdist(part, bank, p=2.0 if metric == "euclidean" else 1.0)
        nearest = bank_labels[distance.topk(k, dim=1, largest=False).indices]  # [q, k]
        votes.append(F.one_hot(nearest, classes).sum(1) / k)
    share = torch.cat(votes)
    return share.argmax(1), share
