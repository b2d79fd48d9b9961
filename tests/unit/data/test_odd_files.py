"""Files that are no files, names that are no text, pictures as viewers show them, lists that name a thing twice."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_lib.data import ImageDataset, Item, load_pixels, open_dataset
from anomaly_lib.data.images import list_images, read_image, read_mask
from anomaly_lib.data.transforms import ImageTransform, clip_transform
from anomaly_lib.errors import UserError
from anomaly_lib.files import check_name, csv_records, read_json, write_text

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
TURNS = {2: "flip_left", 3: "half", 4: "flip_up", 5: "transpose", 6: "right", 7: "transverse", 8: "left"}
SHOWN = {
    "flip_left": PIXELS[:, ::-1], "half": PIXELS[::-1, ::-1], "flip_up": PIXELS[::-1],
    "transpose": PIXELS.transpose(1, 0, 2), "right": np.rot90(PIXELS, -1),
    "transverse": np.rot90(PIXELS, 2).transpose(1, 0, 2), "left": np.rot90(PIXELS),
}  # fmt: skip


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS).save(path)
    return path


def turned(path: Path, image: Image.Image, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", TURNS)
def test_pictures_and_masks_are_turned_as_viewers_turn_them(tmp_path: Path, orientation: int) -> None:
    shown = SHOWN[TURNS[orientation]]
    path = turned(tmp_path / "a.png", Image.fromarray(PIXELS), orientation)
    assert np.array_equal(read_image(path), shown)
    mask = turned(tmp_path / "m.png", Image.fromarray((PIXELS[:, :, 0] > 99).astype(np.uint8) * 255), orientation)
    assert np.array_equal(read_mask(mask), shown[:, :, 0] > 99)
    image, truth = load_pixels(Item(path, 1, "x", "test", "bad", mask))
    assert truth.shape == image.shape[:2]


def test_a_damaged_exif_block_turns_nothing(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert np.array_equal(read_image(tmp_path / "a.png"), PIXELS)


def test_of_several_frames_the_first_counts(tmp_path: Path) -> None:
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    for name in ("a.png", "a.tiff", "a.webp"):
        lossless = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **lossless)
        assert np.array_equal(read_image(tmp_path / name), PIXELS), name


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x\.png: a named pipe, no image file"):
        read_image(tmp_path / "x.png")
    os.mkfifo(tmp_path / "m.png")
    with pytest.raises(UserError, match=r"m\.png: a named pipe, no mask file"):
        load_pixels(Item(put(tmp_path / "i.png"), 1, "x", "test", "bad", tmp_path / "m.png"))


@pytest.mark.skipif(os.name != "posix", reason="links and names of POSIX")
def test_folders_devices_and_loops_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    reasons = {"folder": "a folder, no", "device": "a device, no", "loop": "symbolic links", "gone": "no such image"}
    assert len(list_images(tmp_path)) == 4
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=rf"{name}\.png: .*{reason}"):
            read_image(tmp_path / f"{name}.png")


@pytest.mark.skipif(os.name != "posix", reason="names of POSIX")
def test_names_that_are_no_text_are_refused_in_ascii(tmp_path: Path) -> None:
    for group in ("train/good", "test/good"):
        put(tmp_path / "nut" / group / "0.png")
    good = tmp_path / "nut/test/good/0.png"
    os.rename(good, os.fsencode(good.parent) + b"/caf\xe9.png")
    with pytest.raises(UserError, match=r"caf\\udce9\.png: the name is not text in UTF-8; rename it") as refused:
        open_dataset("mvtec", tmp_path)
    assert str(refused.value).isascii()
    with pytest.raises(UserError, match="control characters"):
        check_name("two\nlines.png")
    check_name("naïve 图.png")


def test_the_longest_names_can_be_written_and_read(tmp_path: Path) -> None:
    path = put(tmp_path / f"{'n' * 240}.png")
    assert np.array_equal(read_image(path), PIXELS)
    write_text(path.with_suffix(".txt"), "x")  # its temporary sibling has a name of its own
    assert path.with_suffix(".txt").read_text() == "x"


@pytest.mark.parametrize("value", [1e38, -1e38, np.inf, np.nan])
def test_values_that_are_no_brightness(tmp_path: Path, value: float) -> None:
    real = RNG.random((6, 9)).astype(np.float32)
    real[2, 3] = value
    Image.fromarray(real).save(tmp_path / "x.tiff")
    with pytest.raises(UserError, match=r"x\.tiff: the image has "):
        read_image(tmp_path / "x.tiff")


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000)])
def test_extreme_shapes_are_stretched_and_not_scaled_out_of_memory(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (9, 9, 9)).save(tmp_path / "x.png")
    stretch = ImageTransform(size=(8, 8), resize="stretch")
    sample = ImageDataset([Item(tmp_path / "x.png", 0, "x", "test")], transform=stretch)[0]
    assert sample["image"].shape == (3, 8, 8)
    assert sample["mask"].shape == (8, 8)
    if max(size) > 1:
        with pytest.raises(UserError, match=r"20000.*pixels"):
            clip_transform(224)(read_image(tmp_path / "x.png"))


# -- lists of files ----------------------------------------------------------------------------------------------------


def entry(**changes: object) -> dict[str, object]:
    return {"img_path": "a.png", "mask_path": "", "cls_name": "nut", "specie_name": "", "anomaly": 0} | changes


def write_meta_json(root: Path, train: object, test: object) -> None:
    (root / "meta.json").write_text(json.dumps({"train": {"nut": train}, "test": {"nut": test}}))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"img_path": None}, "img_path must be a text, got None"),
        ({"img_path": 7}, "img_path must be a text, got 7"),
        ({"img_path": ["a.png"]}, r"img_path must be a text, got \['a.png'\]"),
        ({"img_path": ""}, "img_path must be a text, got ''"),
        ({"img_path": "\udce9.png"}, "not text"),
        ({"img_path": "a\u0000.png"}, "control characters"),
        ({"mask_path": 5}, "mask_path must be text, got 5"),
        ({"cls_name": None}, "cls_name must be a text, got None"),
        ({"specie_name": {}}, "specie_name must be text, got {}"),
        ({"anomaly": None}, "anomaly must be 0 or 1, got None"),
    ],
)
def test_wrong_types_in_meta_json(tmp_path: Path, wrong: dict[str, object], said: str) -> None:
    put(tmp_path / "a.png")
    write_meta_json(tmp_path, [], [entry(**wrong)])
    with pytest.raises(UserError, match=said) as refused:
        open_dataset("meta", tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("entries", [None, {}, "a.png", 3])
def test_classes_of_meta_json_are_lists(tmp_path: Path, entries: object) -> None:
    put(tmp_path / "a.png")
    write_meta_json(tmp_path, entries, [entry()])
    with pytest.raises(UserError, match=r"meta\.json: expected"):
        open_dataset("meta", tmp_path)


def test_an_image_in_both_splits_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    write_meta_json(tmp_path, [entry()], [entry()])
    with pytest.raises(UserError, match=r"meta\.json: .*a\.png is listed in both splits"):
        open_dataset("meta", tmp_path)
    write_meta_json(tmp_path, [], [entry(), entry(img_path="./a.png")])
    with pytest.raises(UserError, match=r"a\.png is listed twice in test"):
        open_dataset("meta", tmp_path)
    (tmp_path / "b.png").symlink_to("a.png")
    write_meta_json(tmp_path, [entry()], [entry(img_path="b.png")])
    with pytest.raises(UserError, match=r"b\.png \(the same file as .*a\.png\) is listed in both splits"):
        open_dataset("meta", tmp_path)


def test_an_image_in_both_splits_of_visa_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "candle/a.JPG")
    (tmp_path / "split_csv").mkdir()
    table = tmp_path / "split_csv/1cls.csv"
    rows = "candle,train,normal,candle/a.JPG,\ncandle,test,normal,candle/a.JPG,\n"
    table.write_text("object,split,label,image,mask\n" + rows)
    with pytest.raises(UserError, match=r"1cls\.csv: .*a\.JPG is listed in both splits"):
        open_dataset("visa", tmp_path)
    table.write_text("object,split,label,image,mask\n" + rows.splitlines()[0] + "\n", encoding="utf-16")
    assert len(open_dataset("visa", tmp_path)) == 1


def test_tables_say_their_encoding_or_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        path.write_bytes("id,name\n\n1,naïve\n2\n3,c,\n".encode(encoding))
        expected = [(3, {"id": "1", "name": "naïve"}), (4, {"id": "2", "name": ""}), (5, {"id": "3", "name": "c"})]
        assert list(csv_records(path, needs=["id"])) == expected, encoding
    path.write_bytes("id,name\n1,naïve\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"t\.csv, after line .*not text in UTF-8 .*save it as UTF-8"):
        list(csv_records(path))
    for content, said in (("id\n1,2\n", "line 2: 2 cells, the header has 1"), ("a,a\n", "two columns are called 'a'")):
        path.write_text(content)
        with pytest.raises(UserError, match=said):
            list(csv_records(path))
    with pytest.raises(UserError, match="column 'id' is missing"):
        list(csv_records(path, needs=["id"]))


def test_json_of_any_depth_and_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": "é"}', encoding="utf-16")
    assert read_json(path) == {"a": "é"}
    for content in (b"[" * 100_000, b"\xff\xff", b'{"a": "\xe9"}', b"1" * 5000):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.json: not ") as refused:
            read_json(path)
        assert len(str(refused.value)) < 400
        assert "\n" not in str(refused.value)
