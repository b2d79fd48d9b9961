"""What trained detectors are handed: pictures in every form, runs, crystals, and what is none of them."""

import contextlib
import functools
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import anomaly_lib
from anomaly_lib.detect.choice import Choice
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.systems.weld.data.demo import weld_demo_runs
from tests.fuzz.oracle import Case
from tests.fuzz.pictures import NO_FILES
from tests.fuzz.recordings import FILES, PARTS
from tests.fuzz.structures import crystal, poscar, record

IMAGES, WELDS = ("detectors", "hdmap", "promptad", "sowa"), ("causal_film", "video_ae", "weld_supcon")
QUICK = ("crystal", "hdmap", "video_ae")  # trained in a second or two
HOME = tempfile.TemporaryDirectory(prefix="fuzz-trained-", ignore_cleanup_errors=True)


@functools.cache
def trained(system: str) -> Path:
    """The checkpoint of a tiny run, made once."""
    args = SYSTEMS[system].tiny(output_dir=str(Path(HOME.name) / system))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        path = SYSTEMS[system].train(args).checkpoint
    assert path is not None
    return path


@functools.cache
def loaded(system: str) -> Any:
    return anomaly_lib.load(trained(system))


def handed(system: str, make: Callable[[Path], Any], count: int = 0) -> Callable[[Path], Any]:
    """Predict what `make` answers; `count`: how many finite scores must come of it."""

    def act(folder: Path) -> Any:
        found = loaded(system).predict(make(folder))
        return not count or (found.score.shape == (count,) and bool(found.score.isfinite().all()))

    return act


NOTHING: dict[str, Any] = {
    "None": None, "3": 3, "3.5": 3.5, "True": True, "bytes": b"", "more bytes": b"abc", "bytearray": bytearray(b"a"),
    "set": set(), "set of names": {"a.png"}, "dict": {}, "full dict": {"image": 1}, "empty list": [], "empty tuple": (),
    "list of None": [None], "list of numbers": [1, 2], "list of lists": [[]], "object": object(), "class": int,
    "no such file": "nowhere.png", "no such files": ["nowhere.png"], "no name": "",
    "zero byte": "a\0.png", "surrogate": "\ud800.png", "long name": "n" * 300 + ".png", "control": "a\n.png",
    "complex": 3j, "slice": slice(3), "function": len, "ellipsis": ..., "range": range(0), "nan": float("nan"),
}  # fmt: skip


def nothing(system: str) -> Iterator[Case]:
    for name, odd in NOTHING.items():
        yield Case(system, f"handed {name}", "refuse", handed(system, lambda _, odd=odd: odd))
    yield Case(system, "handed an empty folder", "refuse", handed(system, lambda folder: folder))
    yield Case(system, "handed a generator", "refuse", handed(system, lambda _: (one for one in "ab")))
    for name, array in {
        "NaN": np.full((9, 9, 3), np.nan),
        "0x0": np.zeros((0, 0), np.uint8),
        "text": np.array(["a"]),
    }.items():
        yield Case(system, f"handed an array of {name}", "refuse", handed(system, lambda _, array=array: array))


def images(system: str, rng: np.random.Generator) -> Iterator[Case]:
    yield from nothing(system)
    base = rng.integers(0, 256, (40, 50), dtype=np.uint8)
    rgb = np.repeat(base[:, :, None], 3, axis=2)
    colours = torch.from_numpy(rgb).permute(2, 0, 1)
    forms: dict[str, Any] = {
        "grey": base, "one channel": base[:, :, None], "opacity": np.dstack([rgb, base]), "float64": rgb / 255,
        "float32": (rgb / 255).astype(np.float32), "uint16": base.astype(np.uint16) * 257, "PIL": Image.fromarray(rgb),
        "PIL grey": Image.fromarray(base), "list": [rgb], "tuple": (rgb,), "4-d": rgb[None], "tensor": colours,
        "tensors": colours[None], "grey tensor": colours[:1], "list of tensors": [colours], "reversed": rgb[::-1][::-1],
        "fortran": np.asfortranarray(rgb), "read-only": np.frombuffer(rgb.tobytes(), np.uint8).reshape(rgb.shape),
    }  # fmt: skip

    for name, form in forms.items():
        near = 0.05 if name in ("float64", "float32", "uint16") else 1e-4  # uint8 is rounded after resizing

        def act(_: Path, form: Any = form, near: float = near) -> bool:
            scores = [loaded(system).predict(one).score for one in (form, rgb)]
            return bool(torch.allclose(*scores, rtol=near, atol=near / 10))

        yield Case(system, f"as {name}", "accept", act)
    for size in ((1, 1), (1, 60), (60, 1), (3, 500), (200, 120)):
        for kind in (np.uint8, np.float32, np.float64, np.uint16, np.bool_):
            values = rng.random((*size, 3))
            array = (values * 255).astype(kind) if kind in (np.uint8, np.uint16) else values.round().astype(kind)
            yield Case(system, f"{np.dtype(kind)} {size}", "accept", handed(system, lambda _, array=array: array, 1))
    for count in (1, 2, 5):
        many = [rng.integers(0, 256, (int(n), 20, 3), dtype=np.uint8) for n in rng.integers(8, 30, count)]
        yield Case(system, f"{count} pictures", "accept", handed(system, lambda _, many=many: many, count))
    wrong: dict[str, Any] = {
        "[3, H, W]": rgb.transpose(2, 0, 1).copy(), "[H]": base[0], "2 channels": rgb[:, :, :2],
        "5 channels": np.repeat(base[:, :, None], 5, axis=2), "int64": base.astype(np.int64),
        "int8": base.astype(np.int8), "complex": base.astype(complex), "object": base.astype(object),
        "0..255 floats": rgb.astype(np.float32), "1e38": np.full((9, 9), 1e38), "inf": np.full((9, 9), np.inf),
        "0x9": np.zeros((0, 9, 3), np.uint8), "5-d": rgb[None, None], "no pictures": rgb[:0][None],
        "PIL 0x0": Image.new("RGB", (0, 0)), "second None": [rgb, None], "second NaN": [rgb, np.full((9, 9), np.nan)],
        "empty tensor": torch.zeros(0), "tensor [H, W]": torch.zeros(9, 9), "tensor of 2": torch.zeros(1, 2, 9, 9),
        "5-d tensor": torch.zeros(1, 1, 3, 9, 9), "NaN tensor": torch.full((1, 3, 9, 9), torch.nan),
        "long tensor": torch.zeros(3, 9, 9, dtype=torch.long), "bool tensor": torch.zeros(3, 9, 9, dtype=torch.bool),
        "half-empty tensor": torch.zeros(1, 3, 0, 9), "wrong size": torch.zeros(1, 3, 7, 9),
        "uint8 [H, W, 3]": torch.from_numpy(rgb),
    }  # fmt: skip
    for name, odd in wrong.items():
        yield Case(system, f"wrong {name}", "refuse", handed(system, lambda _, odd=odd: odd))
    yield from tensors(system)
    for what, make in NO_FILES.items():

        def pipe(folder: Path, make: Callable[[Path], object] = make) -> Path:
            make(folder / "x.png")
            return folder / "x.png"

        yield Case(
            system, f"a file that is {what}", "refuse", handed(system, pipe), "image file|cannot be read|no image below"
        )
    for name in ("x.png", "é.png", "n" * 240 + ".png"):

        def saved(folder: Path, name: str = name) -> Any:
            Image.fromarray(rgb).save(folder / name)
            return folder / name

        yield Case(system, f"a file named {name[:9]}", "accept", handed(system, saved, 1))


def tensors(system: str) -> Iterator[Case]:
    """Transformed batches of every float kind."""
    for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for channels in (1, 3):
            for count in (0, 1, 3):

                def batch(_: Path, kind: Any = kind, channels: int = channels, count: int = count) -> Any:
                    height, width = loaded(system).transform.output_size(9, 9)
                    images = (
                        torch.linspace(0, 1, height * width)
                        .reshape(1, 1, height, width)
                        .expand(max(count, 1), channels, -1, -1)
                    )
                    return (images if count else images[0]).to(kind)

                where = f"batch of {count or 'one without an axis'}, {channels} channels, {kind}"
                yield Case(system, where, "accept", handed(system, batch, max(count, 1)))


def welds(system: str, rng: np.random.Generator) -> Iterator[Case]:
    yield from nothing(system)
    needs = {"causal_film": {"photos"}, "video_ae": {"video"}, "weld_supcon": set()}[system]
    for number in range(16):
        parts = [name for i, name in enumerate(PARTS) if number >> i & 1]

        def make(folder: Path, parts: list[str] = parts) -> Path:
            generator = np.random.default_rng(0)
            (folder / "r").mkdir()
            for name in parts:
                PARTS[name](folder / "r", generator)
            return folder / "r"

        fine = bool(parts) and needs <= set(parts)
        yield Case(system, f"a run with {parts}", "accept" if fine else "refuse", handed(system, make, 1))
    for broken in PARTS:
        for junk in (b"", b"junk " * 9, rng.bytes(200)):

            def make_broken(folder: Path, broken: str = broken, junk: bytes = junk) -> Path:
                for name in PARTS:
                    PARTS[name](folder, rng)
                (folder / FILES[broken]).write_bytes(junk)
                return folder

            reads = {"causal_film": set(PARTS), "video_ae": {"video"}, "weld_supcon": set(PARTS)}[system]
            expect = "refuse" if broken in reads else "accept"
            yield Case(system, f"{broken} of {junk[:6]!r}", expect, handed(system, make_broken))
    for count in (1, 2, 3):
        some = weld_demo_runs(train=count, good=1, per_defect=1)[:count]
        yield Case(system, f"{count} drawn runs", "accept", handed(system, lambda _, some=some: some, count))
    from tests.fuzz.lists import HEAD, RUNS, put_run

    for on_error in ("fail", "skip"):

        def other(folder: Path, on_error: str = on_error) -> Any:
            for row in RUNS:
                put_run(folder / row.split(",")[1])
            (folder / "manifest.csv").write_text("\n".join([HEAD, *RUNS, "good,z/9,TEST"]))
            return loaded(system).items(Choice(data_path=str(folder), on_error=on_error))

        yield Case(system, f"other data that no score can be made of, {on_error}", "refuse", other)


def crystals(rng: np.random.Generator) -> Iterator[Case]:
    system = "crystal"
    yield from nothing(system)
    for index in range(20):
        one, other = crystal(rng), crystal(rng)
        yield Case(system, f"pair #{index}", "accept", handed(system, lambda _, one=one: (one, "a text"), 1))
        yield Case(
            system, f"pairs #{index}", "accept", handed(system, lambda _, a=one, b=other: [(a, "x"), (b, "")], 2)
        )

        def file(folder: Path, one: Any = one, index: int = index) -> Any:
            import json

            path = folder / ("POSCAR" if index % 2 else "a.json")
            path.write_text(poscar(one) if index % 2 else json.dumps(record(one)))
            return str(path), "a description"

        yield Case(system, f"file #{index}", "accept", handed(system, file, 1))
    wrong: tuple[Any, ...] = (
        one, [one], (one, None), (one, 3), (one, ["a", "b"]), (one, "a", "b"), (one, other), [(one, "a"), one],
        ("nowhere.cif", "text"), (one, "b.cif"),
    )  # fmt: skip
    for index, odd in enumerate(wrong):
        yield Case(system, f"wrong #{index}", "refuse", handed(system, lambda _, odd=odd: odd))


def cases(rng: np.random.Generator, systems: tuple[str, ...] = (*IMAGES, *WELDS, "crystal")) -> Iterator[Case]:
    for system in systems:
        if system in IMAGES:
            yield from images(system, rng)
        elif system in WELDS:
            yield from welds(system, rng)
        else:
            yield from crystals(rng)
