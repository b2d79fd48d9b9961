"""Image and mask files: every encoding and orientation, damaged and odd ones."""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anomaly_lib.data.base import Item, load_pixels
from anomaly_lib.data.images import read_image, read_mask
from tests.fuzz.oracle import Case

SIZES = ((1, 1), (7, 5), (1, 9), (33, 2), (16, 16))  # width, height
LOSSLESS = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "tiff": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"),
    "bmp": ("1", "L", "P", "RGB"),
    "webp": ("RGB", "RGBA"),
    "pgm": ("L",),
    "ppm": ("RGB",),
}
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: lambda p: np.rot90(p),
}


def picture(rng: np.random.Generator, mode: str, size: tuple[int, int]) -> Image.Image:
    width, height = size
    if mode == "F":
        return Image.fromarray(rng.random((height, width), np.float32))
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width)).astype(np.uint16))
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def plain(image: Image.Image) -> np.ndarray:
    """What `read_image` is to answer."""
    if image.mode in ("F", "I;16"):
        grey = np.asarray(image, np.float32) / (1 if image.mode == "F" else 65535)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def encoded(image: Image.Image, suffix: str, **more: Any) -> bytes:
    stream = io.BytesIO()
    names = {"pgm": "PPM", "ppm": "PPM", "jpg": "JPEG"}
    lossless = {"lossless": True, "exact": True} if suffix == "webp" else {}
    image.save(stream, names.get(suffix, suffix), **lossless, **more)
    return stream.getvalue()


def read(content: bytes | None, name: str, want: np.ndarray | None = None) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        if content is not None:
            (folder / name).write_bytes(content)
        found = read_image(folder / name)
        return want is None or (found.shape == want.shape and np.allclose(found, want, atol=1e-6))

    return act


def images(rng: np.random.Generator) -> Iterator[Case]:
    for suffix, modes in LOSSLESS.items():
        for mode in modes:
            for size in SIZES:
                image = picture(rng, mode, size)
                where = f"{suffix} {mode} {size}"
                yield Case("image", where, "accept", read(encoded(image, suffix), f"x.{suffix}", plain(image)))
    for suffix in ("png", "tiff", "webp"):
        for turn in (*TURNS, 0, 9, 255):
            for mode in ("L", "RGB"):
                image, exif = picture(rng, mode, (7, 5)), Image.Exif()
                exif[0x0112] = turn
                want = TURNS.get(turn, TURNS[1])(np.asarray(image.convert("RGB")))
                if suffix == "webp" and mode == "L":
                    image = image.convert("RGB")
                content = encoded(image, suffix, exif=exif)
                yield Case("image", f"{suffix} {mode} turned {turn}", "accept", read(content, f"x.{suffix}", want))
    for claimed in ("jpg", "bmp", "tif", "png"):  # the content counts, not the name
        image = picture(rng, "RGB", (9, 9))
        content = encoded(image, "png")
        yield Case("image", f"png named {claimed}", "accept", read(content, f"x.{claimed}", plain(image)))
    for frames in (2, 3, 7):
        many = [picture(rng, "RGB", (8, 6)) for _ in range(frames)]
        for suffix in ("png", "tiff"):
            content = encoded(many[0], suffix, save_all=True, append_images=many[1:])
            yield Case("image", f"{suffix} of {frames} frames", "accept", read(content, f"x.{suffix}", plain(many[0])))
    for name in ("ä.png", "a b.png", "n" * 240 + ".png", "x.PNG", "a@1.png", "a,b.png", "a#1.png", "图.png"):
        image = picture(rng, "RGB", (6, 6))
        yield Case("image", f"named {name[:12]}", "accept", read(encoded(image, "png"), name, plain(image)))
    for size in ((20_000, 1), (1, 20_000), (5000, 3)):
        image = picture(rng, "L", size)
        yield Case("image", f"of {size}", "accept", read(encoded(image, "png"), "x.png", plain(image)))
    yield from damaged(rng)


def damaged(rng: np.random.Generator) -> Iterator[Case]:
    big = picture(rng, "RGB", (48, 40))
    contents = {suffix: encoded(big, suffix) for suffix in ("png", "jpg", "bmp", "tiff", "webp", "ppm")}
    for suffix, content in contents.items():
        said = rf"x\.{suffix}: unreadable image"
        for share in (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
            cut = content[: int(share * len(content))]
            yield Case("image", f"{suffix} cut to {share}", "refuse", read(cut, f"x.{suffix}"), said)
        for junk in (b"hello", b"\0" * 64, rng.bytes(100), content[::-1], b"<svg/>", b"%PDF-1.4", b"\x89PNG\r\n\x1a\n"):
            yield Case("image", f"{suffix} of {junk[:6]!r}", "refuse", read(junk, f"x.{suffix}"), said)
    for place in sorted(rng.choice(np.arange(33, len(contents["png"]) - 12), 60, replace=False).tolist()):
        bent = bytearray(contents["png"])
        bent[place] ^= 1 << int(rng.integers(8))
        yield Case("image", f"png bent at {place}", "refuse", read(bytes(bent), "x.png"), r"x\.png: unreadable")
    for suffix in ("jpg", "tiff", "webp", "bmp"):  # these formats hold no checksum
        for place in sorted(rng.choice(len(contents[suffix]), 20, replace=False).tolist()):
            bent = bytearray(contents[suffix])
            bent[place] ^= 1 << int(rng.integers(8))
            yield Case("image", f"{suffix} bent at {place}", "either", read(bytes(bent), f"x.{suffix}"))
    for width, height in ((10**6, 10**6), (2**31 - 1, 1), (0, 5), (5, 0), (60_000, 60_000)):
        bomb = declared(contents["png"], width, height)
        yield Case("image", f"png says {width}x{height}", "refuse", read(bomb, "x.png"), r"x\.png: unreadable")
    for value in (np.nan, np.inf, -np.inf, 1e38, -1e38, 3.4e38, 1e10, -2e9):
        real = rng.random((5, 6)).astype(np.float32)
        real[int(rng.integers(5)), int(rng.integers(6))] = value
        content = encoded(Image.fromarray(real), "tiff")
        yield Case("image", f"float with {value}", "refuse", read(content, "x.tiff"), r"x\.tiff: the image has")
    for what, make in NO_FILES.items():

        def act(folder: Path, make: Callable[[Path], object] = make) -> Any:
            make(folder / "x.png")
            return read_image(folder / "x.png")

        yield Case("image", what, "refuse", act, "image file|cannot be read|symbolic")
    for name, said in (
        (b"caf\xe9.png", r"caf\\udce9\.png: the name"),
        (b"a\nb.png", "control"),
        (b"\x1b[1m.png", "control"),
    ):

        def act_name(folder: Path, name: bytes = name) -> Any:
            path = os.path.join(os.fsencode(folder), name)
            with open(path, "wb") as stream:
                stream.write(contents["png"])
            return read_image(os.fsdecode(path))

        yield Case("image", f"named {name!r}", "refuse", act_name, said)
    for text in ("", ".", "/", "a\0b.png", "\ud800.png", "x" * 300 + ".png", "nowhere/x.png"):
        yield Case("image", f"path {text[:8]!r}", "refuse", lambda _, text=text: read_image(text))


def declared(png: bytes, width: int, height: int) -> bytes:
    """A PNG whose header says another size, with a right checksum."""
    head = struct.pack(">II", width, height) + png[24:29]
    return png[:16] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + png[33:]


NO_FILES: dict[str, Callable[[Path], object]] = {
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "zero device": lambda path: path.symlink_to("/dev/zero"),
    "null device": lambda path: path.symlink_to("/dev/null"),
    "loop": lambda path: path.symlink_to(path.name),
    "loop of two": lambda path: (path.symlink_to("y.png"), path.with_name("y.png").symlink_to(path.name)),
    "dangling": lambda path: path.symlink_to("nowhere.png"),
    "link to a folder": lambda path: path.symlink_to("."),
    "absent": lambda path: None,
}


def masks(rng: np.random.Generator) -> Iterator[Case]:
    for index in range(12):
        truth = rng.random((6, 9)) < 0.3
        truth[0, 0], truth[0, 1] = True, False
        bits = truth.astype(np.uint8)
        level = int(rng.integers(1, 256))
        colour = np.zeros((6, 9, 3), np.uint8)
        colour[truth, int(rng.integers(3))] = level
        kinds = {
            "grey": Image.fromarray(bits * level), "colour": Image.fromarray(colour),
            "alpha": Image.fromarray(np.dstack([colour, np.full_like(bits, 255)])),
            "bits": Image.fromarray(truth), "deep": Image.fromarray(bits.astype(np.uint16) * 257 * level),
            "float": Image.fromarray(bits.astype(np.float32) * level),
        }  # fmt: skip
        for kind, image in kinds.items():
            suffix = "tiff" if kind == "float" else "png"
            turn = index % 8 + 1
            exif = Image.Exif()
            exif[0x0112] = turn
            content = encoded(image, suffix, exif=exif)

            want = TURNS[turn](truth)

            def act(folder: Path, content: bytes = content, suffix: str = suffix, want: np.ndarray = want) -> bool:
                (folder / f"m.{suffix}").write_bytes(content)
                return bool(np.array_equal(read_mask(folder / f"m.{suffix}"), want))

            yield Case("mask", f"{kind} level {level} turned {turn} #{index}", "accept", act)
    for size in ((9, 6), (6, 9), (1, 1), (9, 7), (8, 6), (18, 12), (90, 60)):
        for turn in (1, 6):
            fits = (size if turn == 1 else size[::-1]) == (9, 6)
            expect = "accept" if fits else "refuse"
            yield Case(
                "mask", f"of {size} turned {turn} on 9x6", expect, on_image(rng, size, turn), "mask is .* but its"
            )
    whole = encoded(picture(rng, "L", (40, 40)), "png")
    for share in (0, 0.1, 0.3, 0.5, 0.7, 0.9):
        yield Case(
            "mask", f"cut to {share}", "refuse", damaged_mask(whole[: int(share * len(whole))]), r"m\.png: unread"
        )
    for value in (np.nan, np.inf, -np.inf):
        content = encoded(Image.fromarray(np.full((6, 9), value, np.float32)), "tiff")
        yield Case("mask", f"of {value}", "refuse", damaged_mask(content, "tiff"), r"m\.tiff: the mask has non-finite")
    for what, make in NO_FILES.items():

        def act_no(folder: Path, make: Callable[[Path], object] = make) -> Any:
            make(folder / "m.png")
            return read_mask(folder / "m.png")

        yield Case("mask", what, "refuse", act_no, "mask file|cannot be read")


def on_image(rng: np.random.Generator, size: tuple[int, int], turn: int) -> Callable[[Path], Any]:
    image, exif = encoded(picture(rng, "RGB", (9, 6)), "png"), Image.Exif()
    exif[0x0112] = turn
    mask = encoded(Image.new("L", size, 255), "png", exif=exif)

    def act(folder: Path) -> bool:
        (folder / "i.png").write_bytes(image)
        (folder / "m.png").write_bytes(mask)
        pixels, truth = load_pixels(Item(folder / "i.png", 1, "x", "test", "bad", folder / "m.png"))
        return truth is not None and truth.shape == pixels.shape[:2] == (6, 9)

    return act


def damaged_mask(content: bytes, suffix: str = "png") -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        (folder / f"m.{suffix}").write_bytes(content)
        return read_mask(folder / f"m.{suffix}")

    return act
