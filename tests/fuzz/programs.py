"""Whole programs in this process, and checkpoints they are handed."""

import csv
import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import anomaly_lib
from anomaly_lib.__main__ import main as anomaly_lib_main
from anomaly_lib.systems.crystal.data.demo import write_crystal_demo
from anomaly_lib.systems.detectors.hdmap.demo_maps import write_hdmap_demo
from anomaly_lib.systems.weld.data.demo import write_weld_demo
from tests.fuzz.detectors import trained
from tests.fuzz.lists import HEAD, RUNS, put_images, put_welds
from tests.fuzz.oracle import Case, program
from tests.fuzz.pictures import NO_FILES
from tests.fuzz.structures import crystal, poscar
from tests.fuzz.transfer import put_maps, spoil


def main_of(name: str) -> Callable[[list[str]], int]:
    main: Callable[[list[str]], int] = importlib.import_module(name).main
    return main


# -- places that hold no data ------------------------------------------------------------------------------------------

PLACES: dict[str, Callable[[Path], Path]] = {
    "absent": lambda folder: folder / "nowhere",
    "a file": lambda folder: made(folder / "d", lambda path: path.write_text("x")),
    "a pipe": lambda folder: made(folder / "d", os.mkfifo),
    "a loop": lambda folder: made(folder / "d", lambda path: path.symlink_to("d")),
    "a device": lambda folder: made(folder / "d", lambda path: path.symlink_to("/dev/zero")),
    "empty": lambda folder: made(folder / "d", Path.mkdir),
    "a long name": lambda folder: folder / ("n" * 300),
    "no text": lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xe9")),
    "control characters": lambda folder: folder / "a\nb",
    "other files": lambda folder: made(folder / "d", lambda path: put_images(path, "a/b/c.png", "x.png")),
}
TRAINERS = {
    "train_cls": ("--dataset", "mvtec", "--backbone", "tiny-clip", "--weights", "random"),
    "train_seg": ("--dataset", "folder", "--backbone", "tiny-clip", "--weights", "random"),
    "train_causal_film": ("--dummy",),
    "train_with_cross_modal_attention": ("--property", "gap"),
    "scripts.train_detector": ("--dataset", "mvtec", "--backbone", "resnet18", "--weights", "random"),
    "scripts.sowa.train_sowa": ("--dataset", "meta", "--backbone", "tiny-clip", "--weights", "random"),
    "scripts.weld.train_video_ae": ("--backbone", "tiny-dinov3", "--weights", "random"),
    "scripts.weld.train_supcon": ("--dummy",),
}
TOOLS = {"scripts.weld.check_labels": (), "scripts.weld.resplit": (), "scripts.sowa.make_meta": ("--dataset", "folder")}


def made(path: Path, make: Callable[[Path], object]) -> Path:
    make(path)
    return path


def places() -> Iterator[Case]:
    for name, words in (TRAINERS | TOOLS).items():
        for what, place in PLACES.items():

            def act(folder: Path, name: str = name, words: Any = words, place: Callable[[Path], Path] = place) -> bool:
                run = () if name in TOOLS else ("--output-dir", folder / "run")
                return program(main_of(name), "--data-path", place(folder), *words, *run)

            yield Case("program", f"{name} on {what}", "refuse", act)


# -- tools -------------------------------------------------------------------------------------------------------------


def tools(rng: np.random.Generator) -> Iterator[Case]:
    for tool in ("check_labels", "resplit"):
        more: dict[str, tuple[str, ...]] = {
            "accept": ("", "good,d/é,VAL"),
            "refuse": ("good,z/9,TEST", RUNS[0], "bad,d/é,TEST", "good,d/é,TEST,x", "good,d/é", "good,b/1,TEST"),
        }
        for expect, last in ((expect, last) for expect, rows in more.items() for last in rows):

            def weld(folder: Path, tool: str = tool, last: str = last) -> bool:
                put_welds(folder)
                (folder / "manifest.csv").write_text("\n".join([HEAD, *RUNS, last]))
                return program(main_of(f"scripts.weld.{tool}"), folder)

            yield Case("program", f"{tool} with {last!r}", expect, weld, "manifest")
    for layout in ("mvtec", "folder", "btad", "dtd"):
        for broken in ("", "nut/train", "nut/test", "nut/test/bad"):

            def meta(folder: Path, layout: str = layout, broken: str = broken) -> bool:
                put_images(folder / "nut", "train/good/0.png", "test/good/1.png", "test/bad/2.png")
                if broken:
                    (folder / broken).rename(folder / "elsewhere")
                return program(main_of("scripts.sowa.make_meta"), layout, folder) and (folder / "meta.json").is_file()

            expect = "refuse" if broken in ("nut/train", "nut/test") else "accept"
            yield Case("program", f"make_meta {layout} without {broken or 'nothing'}", expect, meta)
    tables = {"accept": ("a,1\nb,2", "a.vasp,1"),
              "refuse": ("a,1\nz,2", "a,x", "a,1\na,2", "a,1\na.vasp,2", "c,1", "a,1\nd,2", "d.cif,1", "")}  # fmt: skip
    for expect, targets in ((expect, targets) for expect, rows in tables.items() for targets in rows):

        def describe(folder: Path, targets: str = targets) -> bool:
            for name in "ab":
                (folder / f"{name}.vasp").write_text(poscar(crystal(np.random.default_rng(3), 2)))
            (folder / "c.vasp").write_text("junk")
            os.mkfifo(folder / "d.cif")
            (folder / "t.csv").write_text(targets)
            words = ("--structures", folder, "--targets", folder / "t.csv", "--root-dir", folder / "out")
            return program(main_of("scripts.crystal.describe_structures"), *words)

        yield Case("program", f"describe_structures {targets!r}", expect, describe)
    for content in (
        "{}",
        "[]",
        "null",
        '{"experiment_conditions": [{"name": "a", "config": {"image_size": null}}]}',
        "{",
        "",
    ):

        def conditions(folder: Path, content: str = content) -> bool:
            (folder / "c.json").write_text(content)
            return program(main_of("scripts.hdmap.run_conditions"), "--conditions", folder / "c.json", "--dry-run")

        yield Case("program", f"run_conditions {content[:30]!r}", "refuse", conditions, r"c\.json")
    for what, place in PLACES.items():

        def mat(folder: Path, place: Callable[[Path], Path] = place) -> bool:
            return program(
                main_of("scripts.hdmap.convert_mat"), "--mat-root", place(folder), "--output-dir", folder / "out"
            )

        yield Case("program", f"convert_mat on {what}", "refuse", mat)


# -- trained detectors -------------------------------------------------------------------------------------------------


def predictions(folder: Path, system: str, *words: object) -> list[dict[str, str]]:
    program(anomaly_lib_main, "predict", "--checkpoint", trained(system), *words, "--out", folder / "out")
    with (folder / "out" / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def predict(system: str = "hdmap") -> Iterator[Case]:
    pixels = np.random.default_rng(0).integers(0, 256, (31, 95), dtype=np.uint8)

    def put(path: Path) -> Path:
        Image.fromarray(pixels).save(path)
        return path

    for name in (
        "a.png",
        "a b.png",
        "é.png",
        "n" * 240 + ".png",
        "a,b.png",
        "-a.png",
        "a=b.png",
        "[a].png",
        "*.png",
        "a@1.png",
    ):

        def one(folder: Path, name: str = name) -> bool:
            rows = predictions(folder, system, put(folder / name))
            return len(rows) == 1 and np.isfinite(float(rows[0]["score"])) and Path(rows[0]["path"]).name == name

        yield Case("program", f"predict {name[:9]}", "accept", one)
    damage: dict[str, Callable[[Path], object]] = {
        "empty": lambda path: path.write_bytes(b""),
        "cut": lambda path: path.write_bytes(put(path).read_bytes()[:200]),
        "junk": lambda path: path.write_bytes(b"junk"),
        "1e38": lambda path: Image.fromarray(np.full((31, 95), 1e38, np.float32)).save(path, "TIFF"),
        **{what: make for what, make in NO_FILES.items() if what in ("pipe", "zero device")},
    }
    for what, make in damage.items():
        for on_error in ("fail", "skip"):

            def mixed(folder: Path, make: Callable[[Path], object] = make, on_error: str = on_error) -> bool:
                (folder / "in").mkdir()
                put(folder / "in" / "a.png")
                make(folder / "in" / "b.png")
                put(folder / "in" / "c.png")
                rows = predictions(folder, system, folder / "in", "--on-error", on_error)
                listed = [row for row in rows if row["error"]]
                return len(rows) == 3 and len(listed) == 1 and "b.png" in listed[0]["path"]

            yield Case(
                "program",
                f"predict with {what}, {on_error}",
                "refuse" if on_error == "fail" else "accept",
                mixed,
                r"b\.png",
            )

    def no_text(folder: Path) -> bool:
        (folder / "in").mkdir()
        put(folder / "in" / "a.png")
        os.rename(put(folder / "in" / "x.png"), os.fsencode(folder / "in") + b"/\xe9.png")
        rows = predictions(folder, system, folder / "in", "--on-error", "skip")
        return sorted(bool(row["error"]) for row in rows) == [False, True]

    yield Case("program", "predict with a name that is no text, skip", "accept", no_text)
    for what, place in PLACES.items():
        yield Case(
            "program",
            f"predict {what}",
            "accept" if what == "other files" else "refuse",
            lambda folder, place=place: bool(predictions(folder, system, place(folder))),
        )

        def checkpoint(folder: Path, place: Callable[[Path], Path] = place) -> bool:
            return program(anomaly_lib_main, "predict", "--checkpoint", place(folder), put(folder / "a.png"))

        yield Case("program", f"predict by a checkpoint that is {what}", "refuse", checkpoint)

        def other(folder: Path, place: Callable[[Path], Path] = place) -> bool:
            return program(
                main_of("evaluate"),
                "--checkpoint",
                trained(system),
                "--data-path",
                place(folder),
                "--output",
                folder / "out",
            )

        yield Case("program", f"evaluate on {what}", "refuse", other)
    for place in ("test/good/0", "test/fault/0"):
        for how in ("empty", "junk", "nan", "pipe", "folder"):
            for on_error in ("fail", "skip"):

                def evaluate(folder: Path, place: str = place, how: str = how, on_error: str = on_error) -> bool:
                    put_maps(folder, np.random.default_rng(1))
                    for name in ("1", "2"):
                        values = np.random.default_rng(2).random((31, 95), np.float32)
                        Image.fromarray(values).save((folder / "domain_A" / place).with_name(f"{name}.tiff"))
                    shutil.copytree(folder / "domain_A", folder / "domain_B")
                    spoil(folder / "domain_A" / f"{place}.tiff", how)
                    words = (
                        "--data-path",
                        folder,
                        "--obj",
                        "domain_A",
                        "--bootstrap",
                        0,
                        "--no-figures",
                        "--on-error",
                        on_error,
                    )
                    return program(
                        main_of("evaluate"), "--checkpoint", trained(system), *words, "--output", folder / "out"
                    )

                yield Case(
                    "program",
                    f"evaluate {place} {how}, {on_error}",
                    "refuse" if on_error == "fail" else "accept",
                    evaluate,
                    r"0\.tiff",
                )


# -- training ----------------------------------------------------------------------------------------------------------


def trainings() -> Iterator[Case]:
    """From files to a finished run, with and without a damaged file."""
    for damage in ("none", "fail", "skip"):

        def weld(folder: Path, damage: str = damage) -> bool:
            write_weld_demo(folder / "d", train=4, good=2, per_defect=1)
            if damage != "none":
                next((folder / "d").rglob("*train*/*/*.avi")).write_bytes(b"junk")
            words = (
                "--backbone",
                "tiny-dinov3",
                "--weights",
                "random",
                "--layer",
                2,
                "--epochs",
                1,
                "--video-frames",
                2,
                "--video-size",
                32,
            )
            return trains("scripts.weld.train_video_ae", folder, damage, *words)

        def maps(folder: Path, damage: str = damage) -> bool:
            write_hdmap_demo(folder / "made", train=4, test=2, seed=0).rename(folder / "d")
            if damage != "none":
                next((folder / "d" / "domain_A" / "train" / "good").iterdir()).write_bytes(b"junk")
            words = (
                "--image-size",
                "32",
                "96",
                "--weights",
                "random",
                "--backbone",
                "resnet18",
                "--coreset-size",
                20,
                "--no-figures",
            )
            return trains("scripts.train_detector", folder, damage, "--dataset", "hdmap", "--obj", "domain_A", *words)

        def crystals(folder: Path, damage: str = damage) -> bool:
            write_crystal_demo(folder / "d", count=24)
            if damage != "none":
                next((folder / "d" / "jarvis" / "formation_energy_peratom").rglob("*.cif")).write_text("junk")
            words = (
                "--epochs",
                1,
                "--hidden-features",
                8,
                "--alignn-layers",
                1,
                "--gcn-layers",
                1,
                "--no-figures",
                "--cache",
                "ram",
            )
            return trains("train_with_cross_modal_attention", folder, damage, *words)

        expect = "refuse" if damage == "fail" else "accept"
        for name, act in (("welds", weld), ("maps", maps), ("crystals", crystals)):
            yield Case("program", f"training on {name}, damage {damage}", expect, act)


def trains(name: str, folder: Path, damage: str, *words: object) -> bool:
    run = folder / "run"
    on_error = "skip" if damage == "skip" else "fail"
    program(main_of(name), "--data-path", folder / "d", "--output-dir", run, "--on-error", on_error, *words)
    record = next(run.rglob("run.json"))
    return len(listed(json.loads(record.read_text(encoding="utf-8")))) == (damage == "skip")


def listed(record: Any) -> list[Any]:
    """What a run's record names as skipped, wherever it does."""
    if not isinstance(record, dict):
        return []
    return [*record.get("skipped", []), *(one for value in record.values() for one in listed(value))]


# -- checkpoints -------------------------------------------------------------------------------------------------------

UNREAD = ("history", "optimizer", "rng")  # of a finished run: only training goes on from them
NEEDED = ("format", "system", "args", "model", "extra")


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit: a bent file may only load where the bit means nothing, e.g. in a date."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other or one != one)


def checkpoints(rng: np.random.Generator, systems: tuple[str, ...]) -> Iterator[Case]:
    """Files that are no whole checkpoint of their system."""
    for system in systems:
        for index in range(40):
            share, bit = float(rng.random()), 1 << int(rng.integers(8))

            cut = index % 4 == 0

            def bent(folder: Path, system: str = system, share: float = share, bit: int = bit, cut: bool = cut) -> Any:
                content = bytearray(trained(system).read_bytes())
                place = int(share * len(content))
                content[place] ^= bit
                (folder / "c.pt").write_bytes(content[:place] if cut else content)
                anomaly_lib.load(folder / "c.pt")
                return same(*(torch.load(path, weights_only=True) for path in (folder / "c.pt", trained(system))))

            where = f"{system} {'cut' if cut else 'bent'} at {share:.6f}"
            yield Case("checkpoint", where, "refuse" if cut else "either", bent, r"c\.pt")
        for key in (*NEEDED, "epoch", "best", "history", "optimizer", "rng"):
            for number, odd in enumerate((..., None, 3, "x", [], {}, {"a": 1}, -1.5, torch.zeros(2), True)):

                def changed(folder: Path, system: str = system, key: str = key, odd: Any = odd) -> Any:
                    content = torch.load(trained(system), weights_only=True)
                    if odd is ...:
                        del content[key]
                    else:
                        content[key] = odd
                    torch.save(content, folder / "c.pt")
                    return anomaly_lib.load(folder / "c.pt")

                sure = (
                    number in (0, 1, 3, 4, 7, 8) if key in ("format", "args", "extra") else key in ("system", "model")
                )
                expect = "refuse" if sure else "accept" if key in UNREAD else "either"
                yield Case("checkpoint", f"{system} {key} is #{number}", expect, changed, r"c\.pt|unknown system")
        for what in range(12):

            def shape(folder: Path, system: str = system, what: int = what) -> Any:
                content = torch.load(trained(system), weights_only=True)
                tensors = [
                    name for name, value in content["model"].items() if isinstance(value, torch.Tensor) and value.ndim
                ]
                name = tensors[what % len(tensors)]
                value = content["model"][name]
                content["model"][name] = (
                    value[..., None],
                    value.flatten()[:0],
                    value.repeat(2, *[1] * (value.ndim - 1)),
                )[what % 3]
                torch.save(content, folder / "c.pt")
                return anomaly_lib.load(folder / "c.pt")

            yield Case("checkpoint", f"{system} another shape #{what}", "refuse", shape, r"c\.pt|checkpoint")


def cases(rng: np.random.Generator, systems: tuple[str, ...]) -> Iterator[Case]:
    yield from predict()
    yield from trainings()
    yield from checkpoints(rng, systems)


def cheap(rng: np.random.Generator) -> Iterator[Case]:
    """Programs that train nothing and load nothing that was trained."""
    yield from places()
    yield from tools(rng)
