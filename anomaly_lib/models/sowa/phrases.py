"""What SOWA's prompts say; imports no torch."""

from collections.abc import Mapping, Sequence

# Eleven ways to speak of a photo, each with four states: the long lists of SOWA's configuration.
_PHOTOS = (
    "a photo of the {}",
    "a bright photo of the {}",
    "a dark photo of the {}",
    "a close-up photo of the {}",
    "a black and white photo of the {}",
    "a blurry photo of the {}",
    "a blurry photo of a {}",
    "a photo of the small {}",
    "a photo of the large {}",
    "there is the {} in the scene",
    "this is one {} in the scene",
)
LONG_TEMPLATE: Mapping[str, Sequence[str]] = {
    "normal": tuple(
        photo.format(state)
        for photo in _PHOTOS
        for state in ("{}", "flawless {}", "{} without flaw", "{} without defect")
    ),
    "anomaly": tuple(
        photo.format(state)
        for photo in _PHOTOS
        for state in ("damaged {}", "broken {}", "{} with flaw", "{} with defect")
    ),
}
PLAIN_STATES: Mapping[str, Sequence[str]] = {
    "normal": (
        "{}",
        "flawless {}",
        "perfect {}",
        "unblemished {}",
        "{} without flaw",
        "{} without defect",
        "{} without damage",
    ),
    "anomaly": ("damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage"),
}
PLAIN_TEMPLATES: Sequence[str] = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a close-up photo of a {}.",
    "a cropped photo of the {}.",
    "{}",
)
# The 35 phrasings of CLIP-AC (WinCLIP's and APRIL-GAN's ensemble), for plain prompts.
_ENSEMBLE = (
    "bad photo of", "low resolution photo of", "cropped photo of", "bright photo of", "dark photo of",
    "close-up photo of", "black and white photo of", "jpeg corrupted photo of", "blurry photo of", "good photo of",
)  # fmt: skip
ENSEMBLE_TEMPLATES: Sequence[str] = (
    *(f"a {kind} {article} {{}}." for kind in _ENSEMBLE for article in ("a", "the")),
    *(f"a photo of {which} {{}}." for which in ("a", "the", "my", "one", "a cool", "the cool")),
    *(f"a photo of {which} {{}}." for which in ("a small", "the small", "a large", "the large")),
    *(f"there is {which} {{}} in the scene." for which in ("a", "the")),
    *(f"this is {which} {{}} in the scene." for which in ("a", "the", "one")),
)
PLAIN_SETS: Mapping[str, Sequence[str]] = {"short": PLAIN_TEMPLATES, "ensemble": ENSEMBLE_TEMPLATES}
"""Phrasings of plain prompts by name."""
