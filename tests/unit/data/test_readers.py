"""Each reader on files of the real layout, made on the fly; every kind of broken input gets a line that names it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from anomaly_lib.data import Item, load_pixels, open_dataset, read_meta, write_demo, write_meta
from anomaly_lib.data.layouts import read_folders
from anomaly_lib.errors import UserError


def put(path: Path, value: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value,) * 3 if mode == "RGB" else value).save(path)
    return path


def brief(items: list[Item], root: Path) -> list[tuple]:
    return [
        (
            i.path.relative_to(root).as_posix(), i.label, i.class_name, i.split, i.defect,
            i.mask_path.relative_to(root).as_posix() if i.mask_path else None,
        )
        for i in items
    ]  # fmt: skip


def test_mvtec_layout(tmp_path: Path) -> None:
    for name in ("train/good/001.png", "train/good/000.png", "test/good/000.png", "test/crack/000.png"):
        put(tmp_path / "bottle" / name)
    put(tmp_path / "bottle/ground_truth/crack/000_mask.png", mode="L")
    put(tmp_path / "bottle/train/good/._000.png")  # what macOS leaves behind
    items = open_dataset("mvtec", tmp_path)
    assert brief(items, tmp_path) == [
        ("bottle/train/good/000.png", 0, "bottle", "train", "good", None),
        ("bottle/train/good/001.png", 0, "bottle", "train", "good", None),
        ("bottle/test/crack/000.png", 1, "bottle", "test", "crack", "bottle/ground_truth/crack/000_mask.png"),
        ("bottle/test/good/000.png", 0, "bottle", "test", "good", None),
    ]
    # The class folder itself works as root, whatever it is called from.
    assert [i.path for i in open_dataset("mvtec", tmp_path / "bottle")] == [i.path for i in items]


def test_btad_layout(tmp_path: Path) -> None:
    for name in ("train/ok/0000.bmp", "test/ok/0001.bmp", "test/ko/0002.bmp"):
        put(tmp_path / "01" / name)
    put(tmp_path / "01/ground_truth/ko/0002.png", mode="L")
    assert brief(open_dataset("btad", tmp_path), tmp_path)[1:] == [
        ("01/test/ko/0002.bmp", 1, "01", "test", "ko", "01/ground_truth/ko/0002.png"),
        ("01/test/ok/0001.bmp", 0, "01", "test", "good", None),
    ]


def visa_csv(root: Path, rows: str) -> None:
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("object,split,label,image,mask\n" + rows)


def test_visa_split_csv(tmp_path: Path) -> None:
    put(tmp_path / "candle/Data/Images/Normal/0000.JPG")
    put(tmp_path / "candle/Data/Images/Anomaly/000.JPG")
    put(tmp_path / "candle/Data/Masks/Anomaly/000.png", mode="L")
    visa_csv(
        tmp_path,
        "candle,train,normal,candle/Data/Images/Normal/0000.JPG,\n"
        "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png\n",
    )
    assert brief(open_dataset("visa", tmp_path), tmp_path) == [
        ("candle/Data/Images/Normal/0000.JPG", 0, "candle", "train", "good", None),
        ("candle/Data/Images/Anomaly/000.JPG", 1, "candle", "test", "bad", "candle/Data/Masks/Anomaly/000.png"),
    ]
    with pytest.raises(UserError, match="obj=pcb1"):
        open_dataset("visa", tmp_path, classes=["pcb1"])


@pytest.mark.parametrize("nested", [True, False])
def test_visa_one_class_layout(tmp_path: Path, nested: bool) -> None:
    root = tmp_path / "1cls" if nested else tmp_path
    for name in ("train/good/0000.JPG", "test/good/0001.JPG", "test/bad/000.JPG"):
        put(root / "pcb1" / name)
    put(root / "pcb1/ground_truth/bad/000.png", mode="L")
    items = open_dataset("visa", tmp_path)
    assert [(i.label, i.split) for i in items] == [(0, "train"), (1, "test"), (0, "test")]
    assert items[1].mask_path == root / "pcb1/ground_truth/bad/000.png"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("candle,train,normal,missing.JPG,\n", "1cls.csv:2: .*missing.JPG does not exist"),
        ("candle,valid,normal,a.JPG,\n", "1cls.csv:2: expected split"),
    ],
)
def test_wrong_visa_csv(tmp_path: Path, rows: str, message: str) -> None:
    visa_csv(tmp_path, rows)
    with pytest.raises(UserError, match=message):
        open_dataset("visa", tmp_path)


def test_plain_folders_with_and_without_masks(tmp_path: Path) -> None:
    for i in range(10):
        put(tmp_path / f"good/{i}.png")
    put(tmp_path / "scratched/a.png")
    put(tmp_path / "scratched/b.png")
    put(tmp_path / "masks/a.png", mode="L")
    items = open_dataset("folder", tmp_path)
    assert [i.split for i in items if not i.label].count("train") == 7
    assert [(i.defect, i.has_truth) for i in items if i.label] == [("scratched", True), ("scratched", False)]
    assert [i.path for i in open_dataset("folder", tmp_path) if i.split == "train"] == [
        i.path for i in items if i.split == "train"
    ]


def put_parts(root: Path) -> None:
    for name in ("train/good/0.png", "train/good/1.png", "test/good/2.png", "test/bad/3.png", "test/bad/4.png"):
        put(root / name)
    put(root / "ground_truth/bad/3_mask.png", mode="L")


def test_a_folder_with_its_own_splits_is_one_class(tmp_path: Path) -> None:
    put_parts(tmp_path / "parts")
    expected = [
        ("parts/train/good/0.png", 0, "parts", "train", "good", None),
        ("parts/train/good/1.png", 0, "parts", "train", "good", None),
        ("parts/test/bad/3.png", 1, "parts", "test", "bad", "parts/ground_truth/bad/3_mask.png"),
        ("parts/test/bad/4.png", 1, "parts", "test", "bad", None),
        ("parts/test/good/2.png", 0, "parts", "test", "good", None),
    ]
    assert brief(open_dataset("folder", tmp_path / "parts"), tmp_path) == expected
    assert brief(open_dataset("folder", tmp_path), tmp_path) == expected  # beside other classes as well
    put(tmp_path / "plain/good/5.png")
    put(tmp_path / "plain/good/6.png")
    items = open_dataset("folder", tmp_path)
    assert {item.class_name for item in items} == {"parts", "plain"}
    assert sorted(item.split for item in items if item.class_name == "plain") == ["test", "train"]
    put(tmp_path / "parts/train/bad/7.png")
    with pytest.raises(UserError, match=r"train/bad: train/ holds normal images only"):
        open_dataset("folder", tmp_path)


def test_domains(tmp_path: Path) -> None:
    for domain in "AB":
        for name in ("train/good/000000.png", "test/good/000000.png", "test/fault/000000.png"):
            put(tmp_path / f"domain_{domain}" / name)
    items = open_dataset("hdmap", tmp_path)
    assert {i.domain for i in items} == {"domain_A", "domain_B"}
    assert [i.has_truth for i in items if i.label] == [False, False]


def test_meta_round_trip(tmp_path: Path) -> None:
    written = write_demo(tmp_path, categories=["grid"], size=32, train=2, test_good=1, per_defect=1)
    content = json.loads(write_meta(written, tmp_path).read_text())
    assert content["test"]["grid"][0] == {
        "img_path": "grid/test/bent/000.png", "mask_path": "grid/ground_truth/bent/000_mask.png",
        "cls_name": "grid", "specie_name": "bent", "anomaly": 1,
    }  # fmt: skip
    assert content["train"]["grid"][0]["mask_path"] == ""
    assert brief(open_dataset("meta", tmp_path), tmp_path) == brief(written, tmp_path)
    assert brief(read_meta(tmp_path / "meta.json"), tmp_path) == brief(written, tmp_path)


def test_meta_with_capital_splits_and_empty_species(tmp_path: Path) -> None:
    """What the DAGM and VisA scripts write."""
    put(tmp_path / "Class1/1.PNG")
    entry = {"img_path": "Class1/1.PNG", "mask_path": "", "cls_name": "Class1", "specie_name": "", "anomaly": 1}
    (tmp_path / "meta.json").write_text(json.dumps({"Train": {}, "Test": {"Class1": [entry]}}))
    (item,) = open_dataset("meta", tmp_path)
    assert (item.split, item.defect, item.has_truth) == ("test", "bad", False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected"),
        ('{"train": {}}', 'needs the keys "train" and "test"'),
        ('{"test": {"a": [{"img_path": "x.png"}]}}', r"test/a\[0\] needs"),
        ('{"test": {"a": [{"img_path": "x.png", "cls_name": "a", "anomaly": 2}]}}', "must be 0 or 1"),
        ('{"test": {"a": [{"img_path": "x.png", "cls_name": "a", "anomaly": 1}]}}', "x.png does not exist"),
    ],
)
def test_wrong_meta(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(UserError, match=message):
        open_dataset("meta", tmp_path)


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give data_path="):
        open_dataset("mvtec", None)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        open_dataset("mvtec", tmp_path / "nowhere")
    with pytest.raises(UserError, match="dataset=mvtecad: choose from btad, demo"):
        open_dataset("mvtecad", tmp_path)
    with pytest.raises(UserError, match="no class folder with a train/"):
        open_dataset("mvtec", tmp_path)
    put(tmp_path / "bottle/train/good/000.png")
    with pytest.raises(UserError, match=r"bottle/test: no such folder"):
        open_dataset("mvtec", tmp_path)
    put(tmp_path / "bottle/test/crack/007.png")
    (tmp_path / "bottle/ground_truth/crack").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no mask 007_mask\.png"):
        open_dataset("mvtec", tmp_path)
    with pytest.raises(UserError, match=r"obj=cable: not in .* it has bottle"):
        open_dataset("mvtec", tmp_path, classes=["cable"])


@pytest.mark.data
def test_real_data_sets(real_data: Path) -> None:
    items = open_dataset("mvtec", real_data / "mvtec_ad")
    counts = {split: sum(i.split == split for i in items) for split in ("train", "test")}
    assert counts == {"train": 209, "test": 83}
    assert all(i.has_truth for i in items)
    anomalous = [i for i in items if i.label]
    shares = [load_pixels(i)[1].mean() for i in anomalous[::9]]
    assert 0 < min(shares) < max(shares) < 0.5


def test_folders_may_be_written_in_capitals(tmp_path: Path) -> None:
    for place in ("Parts/OK", "Parts/NOK", "Other/Train/Good", "Other/Test/Good", "Other/Test/Bad"):
        (tmp_path / place).mkdir(parents=True)
        for name in ("a", "b", "c"):
            Image.new("RGB", (8, 8)).save(tmp_path / place / f"{name}.PNG")
    parts = read_folders(tmp_path / "Parts")
    assert sorted((item.label, item.split) for item in parts) == [(0, "test"), *[(0, "train")] * 2, *[(1, "test")] * 3]
    other = read_folders(tmp_path, classes=["Other"])
    assert {(item.split, item.label, item.defect) for item in other} == {
        ("train", 0, "good"), ("test", 0, "good"), ("test", 1, "Bad"),
    }  # fmt: skip
    (tmp_path / "Parts" / "OK").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"found no good/, .*; it holds NOK/$"):
        read_folders(tmp_path / "Parts")
