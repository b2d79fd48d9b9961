"""Names for options that choose among metrics; importing them loads no torch."""

KNN_METRICS = ("cosine", "euclidean", "manhattan")
"""Distances of `knn_vote`."""
