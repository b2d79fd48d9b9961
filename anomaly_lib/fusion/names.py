"""Names of the fusions, for options that choose one; importing them loads no torch."""

FUSION_NAMES = (
    "harmonic", "harmonic-mean", "max", "mean", "min", "product", "weighted", "noisy-or", "z-score", "rank",
)  # fmt: skip
"""Score fusions: the keys of `fusion.FUSIONS`."""

REFERENCE_MODES = ("z-score", "rank")
"""Score fusions that need the scores of normal samples (``references=``)."""

CALIBRATION_NAMES = ("z-score", "quantile")
"""The keys of `fusion.CALIBRATIONS`."""

LATE_FUSION_NAMES = ("gated", "bilinear", "adaptive", "tucker")
"""The keys of `fusion.LATE_FUSIONS`."""

EVIDENCES = ("z-score", "rank", "fisher")
"""The keys of `fusion.evidence.EVIDENCE`."""
