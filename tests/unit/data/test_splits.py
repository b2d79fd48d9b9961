from pathlib import Path

import pytest

from anomaly_lib.data import Item, k_shot
from anomaly_lib.errors import UserError


def train_items(count: int, name: str = "bottle") -> list[Item]:
    return [Item(Path(f"{name}/train/good/{i:03d}.png"), 0, name, "train") for i in range(count)]


def stems(shot) -> list[str]:
    return [item.path.stem for item in shot.items]


def test_by_seed_ignores_listing_order_and_depends_on_the_seed() -> None:
    items = train_items(50)
    assert stems(k_shot(items, 4, seed=111)) == stems(k_shot(items[::-1], 4, seed=111))
    assert len({tuple(stems(k_shot(items, 4, seed=s))) for s in range(10)}) == 10
    assert len(set(stems(k_shot(items, 50, seed=1)))) == 50


def test_published_positions() -> None:
    shot = k_shot(train_items(209), 4, shots="promptad")
    assert stems(shot) == ["029", "045", "192", "127"]
    assert shot.describe()["paths"][0] == "bottle/train/good/029.png"
    assert stems(k_shot(train_items(100, "toothbrush"), 2, shots="promptad")) == ["025", "012"]


def test_position_and_stem_lists(tmp_path: Path) -> None:
    folder = tmp_path / "bottle"
    folder.mkdir()
    # The last line has no newline: the original parser ate its last digit.
    (folder / "selected_samples_per_run.txt").write_text("#1: 131\n#2: 101 048\n#4: 029 045 192 127")
    assert stems(k_shot(train_items(209), 4, shots=tmp_path)) == ["029", "045", "192", "127"]
    by_stem = tmp_path / "stems.txt"
    by_stem.write_text("0-1: 007\n1-1: 011\n1-2: 003 001\n")
    assert stems(k_shot(train_items(20), 1, shots=by_stem, experiment=1)) == ["011"]
    assert stems(k_shot(train_items(20), 2, shots=by_stem, experiment=1)) == ["003", "001"]


@pytest.mark.parametrize(
    ("text", "k", "message"),
    [
        ("#1: 131\n", 1, "position 131"),
        ("#1: 0\n", 2, "no line for k=2"),
        ("one: 1\n", 1, r"list.txt:1: expected"),
        ("0-1: 999\n", 1, "no training image named '999'"),
        ("#2: 3 3\n", 2, "1 different"),
        ("#1: a\n", 1, "must hold positions"),
    ],
)
def test_wrong_lists_name_file_and_line(tmp_path: Path, text: str, k: int, message: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        k_shot(train_items(20), k, shots=tmp_path / "list.txt")


def test_k_out_of_range_and_mixed_classes() -> None:
    with pytest.raises(UserError, match="shot=21"):
        k_shot(train_items(20), 21)
    with pytest.raises(UserError, match="shot=0"):
        k_shot(train_items(20), 0)
    with pytest.raises(UserError, match="one class"):
        k_shot(train_items(3) + train_items(3, "cable"), 1)
