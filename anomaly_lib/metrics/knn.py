"""k-nearest-neighbour vote on frozen features."""

import torch
from torch import Tensor

from anomaly_lib.errors import UserError
from anomaly_lib.metrics.inputs import to_numpy
from anomaly_lib.metrics.names import KNN_METRICS


def knn_vote(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, *, k: int = 5, metric: str = "cosine"
) -> tuple[Tensor, Tensor]:
    """(class of each query [Q], share of its k neighbours in each class [Q, C]), on the CPU.

    Equal votes go to the smallest class index; of samples at the very same distance any may be the k-th neighbour.
    """
    from sklearn.neighbors import KNeighborsClassifier

    if metric not in KNN_METRICS:
        raise UserError(f"metric={metric}: choose from {', '.join(KNN_METRICS)}")
    if not 1 <= k <= len(bank):
        raise UserError(f"k={k}: there are {len(bank)} samples to choose neighbours from; give 1 to {len(bank)}")
    voters = KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(to_numpy(bank), to_numpy(bank_labels))
    share = torch.zeros(len(queries), int(bank_labels.max()) + 1)
    share[:, voters.classes_] = torch.from_numpy(voters.predict_proba(to_numpy(queries))).to(share)
    return share.argmax(1), share
