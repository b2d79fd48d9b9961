"""The paired intervals of the ledger of few-shot detectors."""

import numpy as np
import pytest

from scripts.detectors.fewshot_ledger import Cell, cell_of, difference, tables
from scripts.detectors.ledger_rows import draws_of


def test_a_difference_is_paired_and_over_the_classes_of_both(monkeypatch):
    labels = [0, 0, 0, 1, 1, 1]
    monkeypatch.setattr("scripts.detectors.ledger_rows.class_of", lambda _: type("C", (), {"labels": labels}))

    def row(method, name, ranks, shot="1"):
        wins = np.mean([[(b > g) + (b == g) / 2 for b in ranks[3:]] for g in ranks[:3]])
        text = " ".join(map(str, ranks))
        common = {"method": method, "class": name, "k": shot, "seed": 0, "ranks": text}
        return common | {"image_auroc": float(wins), "pixel_auroc": 0.5}

    rows = [
        row("fewshot", "a", [0, 1, 2, 3, 4, 5]),
        row("fewshot", "b", [0, 1, 2, 3, 4, 5]),
        row("patchcore, ResNet-18", "a", [0, 1, 4, 2, 3, 5]),
    ]
    ours, other = cell_of(rows, "fewshot", "1"), cell_of(rows, "patchcore, ResNet-18", "1")
    assert ours.image == {"a": 100.0, "b": 100.0}
    value, low, high = difference(ours, other, 500)
    assert value == pytest.approx(100 * 2 / 9)
    assert low == 0.0 < value < high
    assert difference(ours, ours, 100) == (0.0, 0.0, 0.0)
    assert difference(ours, Cell({}, {}, {}), 100) is None
    text = tables(rows, 100)
    assert "| patchcore, ResNet-18 | 77.8 / 50.0 (1 classes) | not measured |" in text
    assert "| b | 100.0 / - |" in text
    assert "| patchcore, ResNet-18 | 77.8 / 50.0" in tables(rows[2:], 100)  # what is measured so far


def test_what_is_drawn_once():
    assert draws_of("fewshot", "4", 5) == 5
    assert draws_of("fewshot", "16", 5) == draws_of("fewshot", "all", 5) == draws_of("promptad", "2", 5) == 1
    assert draws_of("padim, ViT-Tiny", "1", 5) == 0
