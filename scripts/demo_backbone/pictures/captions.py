"""Captions for procedural pictures: template(state(noun)), and the words they are made of."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from scripts.demo_backbone.pictures.defects import DEFECT_NAMES
from scripts.demo_backbone.pictures.objects import OBJECTS
from scripts.demo_backbone.pictures.pictures import MATERIALS

TEMPLATES = (
    "{}",
    "{}.",
    "a photo of a {}",
    "a photo of a {}.",
    "a photo of the {}.",
    "a cropped photo of a {}.",
    "a close-up photo of the {}.",
    "a close-up photo of a {}.",
    "a bright photo of the {}.",
    "a dark photo of a {}.",
    "a blurry photo of the {}.",
    "a low resolution photo of a {}.",
    "a good photo of the {}.",
    "a bad photo of a {}.",
    "a photo of one {}.",
    "a photo of a large {}.",
    "a photo of the small {}.",
    "a photo of a {} for visual inspection.",
    "a photo of the {} for anomaly detection.",
    "this is a {} in the scene.",
    "there is the {} in the scene.",
    "an image of a {}",
)
NORMAL_STATES = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "good {}",
    "normal {}",
    "intact {}",
    "clean {}",
    "undamaged {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
    "{} without any anomaly",
    "smooth unbroken {}",
)
DAMAGED_STATES = (
    "damaged {}",
    "broken {}",
    "defective {}",
    "abnormal {}",
    "anomalous {}",
    "faulty {}",
    "imperfect {}",
    "{} with flaw",
    "{} with defect",
    "{} with damage",
    "{} with a flaw",
    "{} with a defect",
    "{} with an anomaly",
)
DEFECT_STATES: dict[str, tuple[str, ...]] = {
    "scratch": ("scratched {}", "{} with a scratch", "{} with scratches", "{} with a cut"),
    "crack": ("cracked {}", "{} with a crack", "fractured {}", "{} with cracks"),
    "spot": ("spotted {}", "{} with a spot", "{} with a dark spot", "{} with a color spot"),
    "stain": ("stained {}", "{} with a stain", "dirty {}", "{} with liquid"),
    "hole": ("{} with a hole", "punctured {}", "{} with a large hole", "{} with a poke"),
    "dent": ("dented {}", "{} with a dent", "{} with a bump", "squeezed {}"),
    "bend": ("bent {}", "deformed {}", "distorted {}", "{} with a bend"),
    "contamination": ("contaminated {}", "{} with contamination", "{} with foreign material", "{} with glue"),
    "thread": ("{} with a thread", "{} with a hair", "{} with a loose fiber", "{} with a foreign thread"),
    "wear": ("worn {}", "faded {}", "{} with a worn area", "{} with faulty print"),
    "misplaced piece": ("misplaced {}", "{} with a misplaced piece", "flipped {}", "{} with a wrong part"),
    "rough patch": ("rough {}", "{} with a rough surface", "{} with a rough patch", "uneven {}"),
    "rust": ("rusty {}", "{} with rust", "corroded {}", "{} with corrosion"),
    "burn": ("burnt {}", "{} with a burn", "melted {}", "scorched {}"),
    "discoloration": ("discolored {}", "{} with discoloration", "{} with a color defect", "{} with wrong color"),
    "pits": ("pitted {}", "{} with pits", "{} with bubbles", "{} with porosity"),
    "missing part": ("{} with a missing part", "chipped {}", "{} with breakage", "incomplete {}"),
}
GENERIC_NOUNS = ("object", "surface", "texture", "product", "part", "item", "thing", "material")
EXTRA_WORDS = (
    "cloth metal paper plastic glass fabric board sheet red green blue yellow white black grey background ! ? , -"
)
UNKNOWN_NOUN = "zzz"  # outside the vocabulary, like the name of anything that was never drawn


def grammar_words() -> list[str]:
    """Every word and punctuation mark the grammar can produce, sorted: the vocabulary of the demo text tower."""
    states = [*NORMAL_STATES, *DAMAGED_STATES, *(phrase for group in DEFECT_STATES.values() for phrase in group)]
    texts = [*TEMPLATES, *states, *MATERIALS, *OBJECTS, *DEFECT_STATES, *GENERIC_NOUNS, EXTRA_WORDS]
    return sorted({word for text in texts for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9{}]", text.lower())})


def noun(rng: np.random.Generator, material: int, kind: int) -> tuple[str, int, int]:
    """A noun for one picture and what it commits to: (text, material or -1, object or -1)."""
    choice = rng.random()
    surface = kind < 0
    if choice < 0.15:
        return UNKNOWN_NOUN, -1, -1
    if choice < 0.35:
        return GENERIC_NOUNS[int(rng.integers(len(GENERIC_NOUNS)))], -1, -1
    if choice < 0.55 or surface:
        suffix = ("", " surface", " texture")[int(rng.integers(3))] if surface else " object"
        return MATERIALS[material] + suffix, material, -1
    if choice < 0.8:
        return OBJECTS[kind], -1, kind
    return f"{MATERIALS[material]} {OBJECTS[kind]}", material, kind


def caption(rng: np.random.Generator, state: str, thing: str) -> str:
    template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
    return template.format(state.format(thing))


def caption_pairs(rng: np.random.Generator, attributes: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    """One caption of the clean and one of the damaged picture of each pair, about the same noun."""
    clean, damaged = [], []
    said = np.full((2, len(attributes), 4), -1, np.int64)
    for row, (material, kind, defect) in enumerate(attributes):
        thing, says_material, says_object = noun(rng, int(material), int(kind))
        specific = rng.random() < 0.45
        states = DEFECT_STATES[DEFECT_NAMES[defect]] if specific else DAMAGED_STATES
        clean.append(caption(rng, NORMAL_STATES[int(rng.integers(len(NORMAL_STATES)))], thing))
        damaged.append(caption(rng, states[int(rng.integers(len(states)))], thing))
        said[:, row, :2] = says_material, says_object
        said[0, row, 2], said[1, row, 2] = 0, 1
        said[1, row, 3] = defect if specific else -1
    return clean + damaged, said.reshape(-1, 4)
