"""WinCLIP's prompts: states of an object in photographs of every kind (the published lists)."""

NORMAL = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ANOMALOUS = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
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


def prompts(words: str, states: tuple[str, ...]) -> list[str]:
    """Every state of what is called `words`, in every photograph, with either article."""
    scenes = [
        photograph.replace("{}", f"{article} {size}{{}}")
        for photograph in PHOTOGRAPHS
        for article in ("a", "the")
        for size in (SIZES if photograph == "a photo of {}." else SIZES[:1])
    ]
    return [scene.format(state.format(words)) for state in states for scene in scenes]
