"""Every encoding of images and masks that inspection data come in, and what a broken file says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_lib.data import ImageDataset, ImageTransform, Item, load_pixels
from anomaly_lib.data import base as base_module
from anomaly_lib.data.images import read_image, read_mask
from anomaly_lib.errors import UserError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
PLAIN = ImageTransform(size=8, resize="stretch", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def test_grey_rgba_palette_become_rgb(tmp_path: Path) -> None:
    rgb = np.repeat(GREY[:, :, None], 3, axis=2)
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([rgb, 255 - GREY])).save(tmp_path / "rgba.png")
    Image.fromarray(GREY).convert("P").save(tmp_path / "palette.png")
    for name in ("grey", "rgba", "palette"):
        assert np.array_equal(read_image(tmp_path / f"{name}.png"), rgb), name


def test_deep_images_keep_their_values(tmp_path: Path) -> None:
    deep = RNG.integers(0, 65536, (6, 9)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tiff")
    real = (RNG.random((6, 9)) * 3 - 0.5).astype(np.float32)  # unclipped, as HDMAP's later files
    Image.fromarray(real).save(tmp_path / "real.tiff")
    for name in ("deep.png", "deep.tiff"):
        image = read_image(tmp_path / name)
        assert image.dtype == np.float32
        np.testing.assert_allclose(image[:, :, 1], deep / 65535, rtol=1e-6)
    assert np.array_equal(read_image(tmp_path / "real.tiff")[:, :, 2], real)
    real[1, 1] = np.nan
    Image.fromarray(real).save(tmp_path / "nan.tiff")
    with pytest.raises(UserError, match=r"nan.tiff: the image has non-finite"):
        read_image(tmp_path / "nan.tiff")


def test_masks_of_any_encoding(tmp_path: Path) -> None:
    truth = np.zeros((12, 16), dtype=bool)
    truth[2:9, 3:11] = True
    bits = truth.astype(np.uint8)
    indexed = Image.frombytes("P", (16, 12), (bits * 7).tobytes())
    indexed.putpalette([0, 0, 0] * 7 + [200, 30, 0] + [255, 255, 255] * 248)
    swapped = Image.frombytes("P", indexed.size, (1 - bits).tobytes())
    swapped.putpalette([255, 255, 255] + [0, 0, 0] * 255)  # index 0 is white: the colour counts, not the index
    colour = np.zeros((*truth.shape, 3), dtype=np.uint8)
    colour[truth] = (0, 0, 3)
    opaque = np.dstack([colour, np.full(truth.shape, 255, dtype=np.uint8)])
    only_alpha = np.dstack([np.zeros_like(colour), bits * 255])
    encodings = {
        "one.png": Image.fromarray(bits), "full.png": Image.fromarray(bits * 255), "binary.png": Image.fromarray(truth),
        "index.png": indexed, "swapped.png": swapped, "colour.png": Image.fromarray(colour),
        "rgba.png": Image.fromarray(opaque), "alpha.png": Image.fromarray(only_alpha),
        "deep.png": Image.fromarray(bits.astype(np.uint16) * 40000), "lossless.bmp": Image.fromarray(bits * 255),
        "lossy.jpg": Image.fromarray(bits * 255), "tiff.tif": Image.fromarray(bits * 255),
    }  # fmt: skip
    for name, image in encodings.items():
        image.save(tmp_path / name)
        assert np.array_equal(read_mask(tmp_path / name), truth), name


def test_non_square_and_grey_go_through_the_dataset(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    sample = ImageDataset([Item(tmp_path / "a.png", 0, "x", "test")], transform=PLAIN, mask_size=16)[0]
    assert sample["image"].shape == (3, 8, 8)
    assert sample["mask"].shape == (16, 16)
    assert not sample["mask"].any()
    assert torch.equal(sample["image"][0], sample["image"][2])


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "missing"])
def test_broken_files_name_themselves(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "broken.png"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "text": b"hello", "truncated": content[: len(content) // 2]}[damage])
    with pytest.raises(UserError, match=r"broken\.png: ") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "i.png")
    Image.new("L", (10, 20)).save(tmp_path / "m.png")
    with pytest.raises(UserError, match=r"m\.png: mask is 10x20 but its image is 20x10"):
        load_pixels(Item(tmp_path / "i.png", 1, "x", "test", "bad", tmp_path / "m.png"))


def folder_of(tmp_path: Path, count: int) -> list[Item]:
    items = []
    for i in range(count):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i}.png")
        items.append(Item(tmp_path / f"{i}.png", 0, "x", "train"))
    return items


def test_skip_lists_what_it_skipped(tmp_path: Path) -> None:
    items = folder_of(tmp_path, 4)
    items[1].path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"1\.png"):
        _ = [sample["path"] for sample in ImageDataset(items, transform=PLAIN)]  # type: ignore[attr-defined]
    dataset = ImageDataset(items, transform=PLAIN, on_error="skip")
    assert [Path(dataset[i]["path"]).stem for i in range(len(dataset))] == ["0", "2", "3"]
    assert [round(float(dataset[i]["image"][0, 0, 0]) * 255) for i in range(3)] == [0, 2, 3]
    assert [Path(entry["path"]).name for entry in dataset.skipped] == ["1.png"]
    with pytest.raises(UserError, match="none of the 1 images"):
        ImageDataset([items[1]], transform=PLAIN, on_error="skip")
    with pytest.raises(UserError, match="on_error="):
        ImageDataset(items, transform=PLAIN, on_error="ignore")


def test_each_file_is_decoded_once_within_the_memory_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = folder_of(tmp_path, 4)
    decoded: list[str] = []
    real = base_module.read_image
    monkeypatch.setattr(base_module, "read_image", lambda path: decoded.append(Path(path).stem) or real(path))
    dataset = ImageDataset(items, transform=PLAIN)
    first = [dataset[i]["image"].mul_(0) for i in range(4)]  # in-place changes must not reach the cache
    assert [round(float(dataset[i]["image"].max()) * 255) for i in range(4)] == [0, 1, 2, 3]
    assert decoded == ["0", "1", "2", "3"]
    assert all(float(t.sum()) == 0 for t in first)
    decoded.clear()
    one_sample = 3 * 8 * 8 * 4 + 8 * 8
    small = ImageDataset(items, transform=PLAIN, cache_bytes=2 * one_sample)
    for _ in range(3):
        for i in range(4):
            small[i]
    assert decoded == ["0", "1", "2", "3", "2", "3", "2", "3"]
