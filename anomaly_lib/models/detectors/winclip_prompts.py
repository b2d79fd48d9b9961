"""WinCLIP's prompts: states of an object in photographs of every kind (the published lists)."""

from collections.abc import Sequence

from anomaly_lib.models.sowa.phrases import PLAIN_STATES

NORMAL = PLAIN_STATES["normal"]
ANOMALOUS = [state for state in PLAIN_STATES["anomaly"] if state != "broken {}"]  # SOWA's own
PHOTOGRAPHS = (
    "a cropped photo of {}.",
    "a close-up photo of {}.",
    "a bright photo of {}.",
    "a dark photo of {}.",
    "a jpeg corrupted photo of {}.",
    "a blurry photo of {}.",
    "a photo of {}.",
    "a photo of {} for visual inspection.",
    "a photo of {} for anomaly detection.",
)
SIZES = ("", "small ", "large ")  # the plain photograph alone shows an object of a size


def prompts(words: str, states: Sequence[str]) -> list[str]:
    """Every state of what is called `words`, in every photograph, with either article."""
    scenes = [
        photograph.replace("{}", f"{article} {size}{{}}")
        for photograph in PHOTOGRAPHS
        for article in ("a", "the")
        for size in (SIZES if photograph == "a photo of {}." else SIZES[:1])
    ]
    return [scene.format(state.format(words)) for state in states for scene in scenes]
