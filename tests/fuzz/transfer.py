"""HDMAP: condition files, folders of maps, MATLAB files."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from anomaly_lib.systems.detectors.hdmap.conditions import args_of, load_experiment_conditions, values_of
from anomaly_lib.systems.detectors.hdmap.convert import Version, read_mat
from anomaly_lib.systems.detectors.hdmap.reader import load_split
from tests.fuzz.lists import ENCODINGS
from tests.fuzz.oracle import Case
from tests.fuzz.pictures import NO_FILES

ODD: tuple[Any, ...] = (None, "x", "", [], {}, [None], {"a": 1}, [[]], float("nan"), "1e999", [1, 2, 3, 4], -7.5)
CONFIG: dict[str, Any] = {
    "model_type": "draem_sevnet", "source_domain": "domain_A", "target_domains": "auto", "image_size": "64x64",
    "max_epochs": 3, "train_batch_size": 4, "learning_rate": 1e-4, "patch_width_range": [4, 16], "patch_count": 2,
    "scheduler": {"type": "steplr", "step_size": 2, "gamma": 0.5}, "seed": 3, "resize_method": "resize",
}  # fmt: skip


def conditions_file(content: Any, model: str = "draem_sevnet") -> Callable[[Path], Any]:
    def act(folder: Path) -> bool:
        (folder / "c.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        found = load_experiment_conditions(folder / "c.json")
        return bool([args_of(values_of(one, model)) for one in found])

    return act


def file_of(config: Any, name: Any = "one") -> dict[str, Any]:
    return {"experiment_conditions": [{"name": name, "config": config}]}


def conditions(rng: np.random.Generator) -> Iterator[Case]:
    yield Case("condition", "good", "accept", conditions_file(file_of(CONFIG)))
    for key in CONFIG:
        yield Case(
            "condition",
            f"without {key}",
            "accept",
            conditions_file(file_of({k: v for k, v in CONFIG.items() if k != key})),
        )
        for index, odd in enumerate(ODD):
            fine = (key, index) in {("scheduler", 4), ("scheduler", 6)}  # a schedule without a type is a constant one
            yield Case(
                "condition",
                f"{key} is #{index} {odd!r:.12}",
                "accept" if fine else "refuse",
                conditions_file(file_of(CONFIG | {key: odd})),
            )
        yield Case(
            "condition",
            f"{key} spelled wrongly",
            "refuse",
            conditions_file(file_of(CONFIG | {f"{key}s_": 1})),
            "unknown config name",
        )
    for size in ("32x64", "32, 64", [32, 64], 64, "64 64", [64.0, 64]):
        yield Case(
            "condition", f"image_size {size!r}", "accept", conditions_file(file_of(CONFIG | {"image_size": size}))
        )
    for kind in ("steplr", "cosine", "none", "constant", "StepLR"):
        yield Case("condition", f"schedule {kind}", "accept", conditions_file(file_of(CONFIG | {"scheduler": kind})))
    for name in ("a b", "é", "a.b", "-", "n" * 100):
        yield Case("condition", f"named {name[:9]!r}", "accept", conditions_file(file_of(CONFIG, name)))
    for index, name in enumerate(
        (None, 3, [], {}, "", ".", "..", "a/b", "../a", "/a", "a\\b", "a\nb", "\0", "n" * 300)
    ):
        yield Case("condition", f"named #{index}", "refuse", conditions_file(file_of(CONFIG, name)), r"c\.json")
    for index, odd in enumerate((None, [], "x", 3, True)):
        yield Case("condition", f"config is #{index}", "refuse", conditions_file(file_of(odd)), r"c\.json")
        yield Case(
            "condition",
            f"a condition is #{index}",
            "refuse",
            conditions_file({"experiment_conditions": [odd]}),
            r"c\.json",
        )
        yield Case("condition", f"the file is #{index}", "refuse", conditions_file(odd), r"c\.json")
        yield Case(
            "condition",
            f"named object is #{index}",
            "refuse",
            conditions_file({"a": {"config": CONFIG}, "b": odd}),
            r"c\.json",
        )
    yield Case(
        "condition", "named objects", "accept", conditions_file({"a": {"config": CONFIG}, "b": {"config": CONFIG}})
    )
    twice = {"experiment_conditions": [{"name": "a", "config": CONFIG}] * 2}
    yield Case("condition", "one name twice", "refuse", conditions_file(twice), "share a name")
    for model in ("patchcore", "padim", "draem"):
        yield Case(
            "condition",
            f"for {model}",
            "refuse",
            conditions_file(file_of(CONFIG), model),
            f"this script trains {model}",
        )
    text = json.dumps(file_of(CONFIG, "é"), ensure_ascii=False)
    for encoding, fine in ENCODINGS.items():
        yield Case(
            "condition",
            f"in {encoding}",
            "accept" if fine else "refuse",
            conditions_file(text.encode(encoding)),
            r"c\.json",
        )
    for change in (
        text.replace("{", "{ // why\n", 1),
        text.replace("}", ",}"),
        "/* a\n b */" + text,
        text.replace(",", ",/**/"),
    ):
        yield Case("condition", f"commented {change[:12]!r} {len(change)}", "accept", conditions_file(change.encode()))
    for place in sorted(rng.choice(len(text) - 1, 30, replace=False).tolist()):
        yield Case("condition", f"cut to {place}", "refuse", conditions_file(text[:place].encode()), r"c\.json")
    for junk in (b"[" * 50_000, rng.bytes(60), b"\xff\xfe", b"/*", b"//", b'"', b"\0"):
        yield Case("condition", f"is {junk[:6]!r}", "refuse", conditions_file(junk), r"c\.json")
    for what, make in NO_FILES.items():

        def act(folder: Path, make: Callable[[Path], object] = make) -> Any:
            make(folder / "c.json")
            return load_experiment_conditions(folder / "c.json")

        yield Case("condition", what, "refuse", act, "condition file|cannot be read")


# -- maps --------------------------------------------------------------------------------------------------------------

PLACES = ("train/good/0", "train/good/1", "test/good/0", "test/fault/0")


def put_maps(folder: Path, rng: np.random.Generator, kind: str = "tiff", size: tuple[int, int] = (31, 95)) -> None:
    for place in PLACES:
        path = folder / "domain_A" / f"{place}.{'tiff' if kind == 'tiff' else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = rng.random(size).astype(np.float32)
        scaled = {"tiff": values, "8": (values * 255).astype(np.uint8), "16": (values * 65535).astype(np.uint16)}
        Image.fromarray(scaled[kind]).save(path)


def maps(rng: np.random.Generator) -> Iterator[Case]:
    for kind in ("tiff", "8", "16"):
        for size in ((31, 95), (1, 1), (8, 200), (64, 64)):
            for method in ("resize", "resize_bilinear", "resize_aspect_padding"):

                def act(folder: Path, kind: str = kind, size: tuple[int, int] = size, method: str = method) -> bool:
                    put_maps(folder, np.random.default_rng(1), kind, size)
                    data = load_split(folder, "domain_A", "test", size=(32, 96), resize_method=method)
                    good = data.images.shape == (2, 1, 32, 96) and bool(data.images.isfinite().all())
                    return good and data.labels.tolist() == [0, 1]

                yield Case("map", f"{kind} {size} {method}", "accept", act)
        for method in ("black_padding", "noise_padding"):
            for size in ((31, 95), (33, 95), (31, 97)):

                def act_pad(folder: Path, kind: str = kind, size: tuple[int, int] = size, method: str = method) -> bool:
                    put_maps(folder, np.random.default_rng(1), kind, size)
                    data = load_split(folder, "domain_A", "test", size=(32, 96), resize_method=method)
                    return data.images.shape == (2, 1, 32, 96)

                fine = size == (31, 95)
                yield Case(
                    "map", f"{kind} {size} {method}", "accept" if fine else "refuse", act_pad, "cannot be padded"
                )
    for index, place in enumerate(PLACES):
        split = place.split("/")[0]
        for how in ("empty", "junk", "other size", "nan", "1e38", "pipe", "folder", "text name"):

            def act_broken(folder: Path, place: str = place, split: str = split, how: str = how) -> Any:
                put_maps(folder, np.random.default_rng(1))
                spoil(folder / "domain_A" / f"{place}.tiff", how)
                return load_split(folder, "domain_A", split)

            yield Case("map", f"{place} {how}", "refuse", act_broken, r"\.tiff|size differs|not text")

            def act_skip(folder: Path, place: str = place, split: str = split, how: str = how) -> bool:
                put_maps(folder, np.random.default_rng(1))
                spoil(folder / "domain_A" / f"{place}.tiff", how)
                data = load_split(folder, "domain_A", split, on_error="skip")
                return len(data) == 1 and len(data.skipped) == 1

            if how not in ("other size", "text name"):
                yield Case("map", f"{place} {how} skipped", "accept", act_skip)
        for gone in (place.rsplit("/", 1)[0], split, "."):

            def act_gone(folder: Path, gone: str = gone, split: str = split) -> Any:
                put_maps(folder, np.random.default_rng(1))
                for path in sorted((folder / "domain_A" / gone).rglob("*"), reverse=True):
                    path.unlink() if path.is_file() else path.rmdir()
                return load_split(folder, "domain_A", split)

            yield Case("map", f"#{index} without {gone}", "refuse", act_gone, "domain_A")
    for domain in ("domain_E", "", "A", "../domain_A"):
        yield Case(
            "map",
            f"domain {domain!r}",
            "refuse",
            lambda folder, domain=domain: load_split(folder, domain, "test"),
            "domain",
        )


def spoil(path: Path, how: str) -> None:
    import os

    path.unlink()
    if how in ("nan", "1e38"):
        Image.fromarray(np.full((31, 95), float(how), np.float32)).save(path)
    elif how == "other size":
        Image.fromarray(np.zeros((30, 95), np.float32)).save(path)
        Image.fromarray(np.zeros((31, 95), np.float32)).save(path.with_name("9.tiff"))
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how == "text name":
        with open(os.path.join(os.fsencode(path.parent), b"\xe9.tiff"), "wb") as stream:
            stream.write(b"x")
    else:
        path.write_bytes(b"" if how == "empty" else b"II*\0junk")


# -- MATLAB ------------------------------------------------------------------------------------------------------------


def mat_bytes(**content: Any) -> bytes:
    stream = io.BytesIO()
    savemat(stream, content)
    return stream.getvalue()


def mat_file(content: bytes, shape: tuple[int, ...] | None = None) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        (folder / "x.mat").write_bytes(content)
        found = read_mat(folder / "x.mat")
        return shape is None or found.shape == shape

    return act


def matlab(rng: np.random.Generator) -> Iterator[Case]:
    for shape in ((31, 95, 1, 4), (1, 1, 1, 2), (5, 7, 1, 3)):
        for kind in ("f8", "f4", "u1", "i2"):
            data = (100 * rng.random(shape)).astype(kind)
            yield Case("mat", f"{kind} {shape}", "accept", mat_file(mat_bytes(Xdata=data), (shape[3], *shape[:2])))
    for shape in ((3, 4), (3, 4, 2, 5), (3, 4, 1), (0, 4, 1, 2), (3, 4, 1, 0), (2, 2, 2, 2)):
        yield Case("mat", f"of {shape}", "refuse", mat_file(mat_bytes(Xdata=np.zeros(shape))), r"x\.mat: Xdata must be")
    others: dict[str, Any] = {
        "a struct": {"a": 1},
        "cells": np.array([[1, "a"]], object),
        "text": "abc",
        "complex": np.zeros((2, 2, 1, 2), complex),
        "nan": np.full((2, 2, 1, 2), np.nan),
    }
    for name, data in others.items():
        yield Case("mat", name, "refuse", mat_file(mat_bytes(Xdata=data)), r"x\.mat: Xdata")
    yield Case("mat", "another name", "refuse", mat_file(mat_bytes(Ydata=np.zeros((2, 2, 1, 2)))), "no variable Xdata")
    whole = mat_bytes(Xdata=rng.random((31, 95, 1, 2)))
    for share in (0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        yield Case("mat", f"cut to {share}", "refuse", mat_file(whole[: int(share * len(whole))]), r"x\.mat")
    for junk in (b"hello", b"\0" * 300, rng.bytes(300), b"MATLAB 5.0 MAT-file", whole[:128]):
        yield Case("mat", f"is {junk[:8]!r} of {len(junk)}", "refuse", mat_file(junk), r"x\.mat")
    for place in sorted(rng.choice(np.arange(116, 300), 25, replace=False).tolist()):
        bent = bytearray(whole)
        bent[place] ^= 1 << int(rng.integers(8))
        yield Case("mat", f"bent at {place}", "either", mat_file(bytes(bent)))
    for version in (
        "1000_8bit_resize_224x224",
        "10_16bit_original",
        "5_tiff_minmax",
        "7_png_zscore",
        "3_8bit_pad_to_64x128",
    ):
        yield Case("mat", f"version {version}", "accept", lambda _, version=version: Version.parse(version).count > 0)
    for version in (
        "",
        "x",
        "1000",
        "8bit_original",
        "1000_8bit_resize",
        "10_12bit_original",
        "5_tiff_none",
        "-1_tiff_minmax",
        "5_tiff_minmax_",
    ):
        yield Case(
            "mat", f"version {version!r}", "refuse", lambda _, version=version: Version.parse(version), "version="
        )
    for what, make in NO_FILES.items():

        def act(folder: Path, make: Callable[[Path], object] = make) -> Any:
            make(folder / "x.mat")
            return read_mat(folder / "x.mat")

        yield Case("mat", what, "refuse", act, ".mat file|cannot be read")
