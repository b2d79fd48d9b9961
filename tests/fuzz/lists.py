"""Lists of files: meta.json, VisA's split table, folder layouts, the manifest of welds."""

import atexit
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anomaly_lib.data import open_dataset
from anomaly_lib.systems.weld.data.manifest import CLASSES, read_manifest
from anomaly_lib.systems.weld.data.runs import load_raw
from anomaly_lib.systems.weld.features import readable_runs
from anomaly_lib.systems.weld.options import WeldSettings
from tests.fuzz.oracle import Case

PIXEL = Image.new("RGB", (2, 2), (9, 9, 9))
ODD: tuple[Any, ...] = (None, True, 0, 1, -1, 2, 3.5, float("nan"), [], ["a.png"], {}, {"a": 1}, "", " ", "nowhere.png",
                        "a\0b", "a\nb", "\ud800", ".", "..", "/", "x" * 5000, "train", 10**30)  # fmt: skip
ENCODINGS = {"utf-8": True, "utf-8-sig": True, "utf-16": True, "utf-32": True, "latin-1": False, "cp1252": False}


def put_images(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIXEL.save(path)


def entry(name: str, **changes: Any) -> dict[str, Any]:
    return {"img_path": name, "mask_path": "", "cls_name": "nut", "specie_name": "good", "anomaly": 0} | changes


def good_meta() -> dict[str, Any]:
    train, test = [entry("a.png"), entry("b.png")], [entry("c.png"), entry("d.png", anomaly=1, mask_path="m.png")]
    return {"train": {"nut": train}, "test": {"nut": test}}


def open_meta(content: Any, make: Callable[[Path], object] = lambda _: None, count: int = 4) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        put_images(folder, "a.png", "b.png", "c.png", "d.png", "m.png", "é.png")
        make(folder)
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / "meta.json").write_bytes(raw)
        return len(open_dataset("meta", folder)) == count

    return act


def meta(rng: np.random.Generator) -> Iterator[Case]:
    said = r"meta\.json"
    for key in ("img_path", "mask_path", "cls_name", "specie_name", "anomaly"):
        for index, odd in enumerate(ODD):
            content = good_meta()
            content["test"]["nut"][1][key] = odd
            text = isinstance(odd, str)
            fine = {
                "img_path": False,
                "mask_path": odd is None or odd == "",
                "cls_name": text and bool(odd),
                "specie_name": text or odd is None,
                "anomaly": odd in (0, 1) if not isinstance(odd, (list, dict)) else False,
            }[key]
            yield Case(
                "meta",
                f"{key} is #{index} {odd!r:.20}",
                "accept" if fine else "refuse",
                open_meta(content),
                said,
            )
        content = good_meta()
        del content["test"]["nut"][1][key]
        optional = key in ("mask_path", "specie_name")
        yield Case("meta", f"no {key}", "accept" if optional else "refuse", open_meta(content), said)
    for split in ("train", "test"):
        for index, odd in enumerate(ODD):
            content = good_meta()
            content[split] = odd
            expect = "accept" if odd == {} else "refuse"
            yield Case("meta", f"{split} is #{index} {odd!r:.20}", expect, open_meta(content, count=2), said)
            content = good_meta()
            content[split]["nut"] = odd
            empty = odd == []
            yield Case(
                "meta",
                f"{split} class is #{index} {odd!r:.20}",
                "accept" if empty else "refuse",
                open_meta(content, count=2),
                said,
            )
            content = good_meta()
            content[split]["nut"].append(odd)
            yield Case("meta", f"{split} holds #{index} {odd!r:.20}", "refuse", open_meta(content), said)
    for odd in ("Train", "TEST", "val", "training", ""):
        content = good_meta()
        content[odd] = content.pop("train" if odd != "TEST" else "test")
        fine = odd in ("Train", "TEST")
        yield Case("meta", f"split called {odd!r}", "accept" if fine else "refuse", open_meta(content), said)
    for one, other in (("a.png", "c.png"), ("b.png", "c.png"), ("a.png", "d.png"), ("a.png", "a.png")):
        for spelling in ("{}", "./{}", "x/../{}", "link-{}", "hard-{}"):
            content = good_meta()
            content["test"]["nut"].append(entry(spelling.format(one)))

            def make(folder: Path, one: str = one) -> None:
                (folder / "x").mkdir()
                (folder / f"link-{one}").symlink_to(one)
                os.link(folder / one, folder / f"hard-{one}")

            yield Case(
                "meta",
                f"{spelling.format(one)} in both, after {other}",
                "refuse",
                open_meta(content, make),
                "listed in both splits",
            )
    for name in ("c.png", "d.png"):
        content = good_meta()
        content["test"]["nut"].append(entry(name))
        yield Case("meta", f"{name} twice in test", "refuse", open_meta(content), "listed twice in test")
    content = good_meta()
    content["train"]["nut"].append(entry("é.png"))
    text = json.dumps(content, ensure_ascii=False)
    for encoding, fine in ENCODINGS.items():
        yield Case(
            "meta", f"in {encoding}", "accept" if fine else "refuse", open_meta(text.encode(encoding), count=5), said
        )
    whole = json.dumps(good_meta()).encode()
    for place in sorted(rng.choice(len(whole) - 1, 40, replace=False).tolist()):
        yield Case("meta", f"cut to {place} bytes", "refuse", open_meta(whole[:place]), said)
    for junk in (
        b"[" * 50_000,
        b'{"a":' * 50_000,
        b"null",
        b"[]",
        b"{}",
        b"3",
        b'"x"',
        rng.bytes(50),
        b"\xff\xfe",
        b"\xef\xbb\xbf",
    ):
        yield Case("meta", f"is {junk[:8]!r}", "refuse", open_meta(junk), said)
    for what, target in (("pipe", None), ("device", "/dev/zero"), ("loop", "meta.json"), ("dangling", "nowhere")):

        def act(folder: Path, target: str | None = target) -> Any:
            (os.mkfifo(folder / "meta.json") if target is None else (folder / "meta.json").symlink_to(target))
            return open_dataset("meta", folder)

        yield Case("meta", f"is a {what}", "refuse", act, said)


# -- tables of images --------------------------------------------------------------------------------------------------

VISA = "object,split,label,image,mask"
VISA_ROWS = ("nut,train,normal,a.png,", "nut,test,normal,c.png,", "nut,test,anomaly,d.png,m.png")


def open_visa(table: str | bytes, count: int = 3) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        put_images(folder, "a.png", "b.png", "c.png", "d.png", "m.png", "é.png")
        (folder / "split_csv").mkdir()
        (folder / "split_csv" / "1cls.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
        return len(open_dataset("visa", folder)) == count

    return act


def visa(rng: np.random.Generator) -> Iterator[Case]:
    rows = "\n".join(VISA_ROWS)
    for ending in ("", "\n", "\n\n\n"):
        for newline in ("\n", "\r\n", "\r"):
            table = f"{VISA}\n{rows}{ending}".replace("\n", newline).encode()
            yield Case("visa", f"ends {ending!r} lines {newline!r}", "accept", open_visa(table))
    for encoding, fine in ENCODINGS.items():
        table = f"{VISA}\n{rows}\nnut,train,normal,é.png,\n".encode(encoding)
        yield Case("visa", f"in {encoding}", "accept" if fine else "refuse", open_visa(table, 4), r"1cls\.csv")
    columns = VISA.split(",")
    for order in [rng.permutation(5) for _ in range(10)]:
        turned = "\n".join(",".join(line.split(",")[i] for i in order) for line in (VISA, *VISA_ROWS))
        yield Case("visa", f"columns {order.tolist()}", "accept", open_visa(turned))
    for index, name in enumerate(columns):
        missing = "\n".join(
            ",".join(c for i, c in enumerate(line.split(",")) if i != index) for line in (VISA, *VISA_ROWS)
        )
        yield Case("visa", f"no column {name}", "refuse", open_visa(missing), f"column '{name}' is missing")
        twice = f"{VISA},{name}\n" + "\n".join(f"{row},x" for row in VISA_ROWS)
        yield Case("visa", f"two columns {name}", "refuse", open_visa(twice), "two columns")
        for row in range(3):
            for odd in ("", "x", " ", "..", "\x00", "a\x1bb", "train ", "y" * 300):
                cells = [list(line.split(",")) for line in VISA_ROWS]
                cells[row][index] = odd
                fine = (name == "object") or (name == "mask" and odd == "")
                table = "\n".join([VISA, *(",".join(line) for line in cells)])
                yield Case(
                    "visa", f"row {row} {name} is {odd[:9]!r}", "accept" if fine else "refuse", open_visa(table), ""
                )
    for cells in range(1, 5):
        cut = "\n".join([VISA, *VISA_ROWS[:2], ",".join(VISA_ROWS[2].split(",")[:cells])])
        fine = cells == 4
        yield Case("visa", f"last row of {cells} cells", "accept" if fine else "refuse", open_visa(cut), r"1cls\.csv")
    for more in (",x", ",,x", ",,"):
        fine = not more.strip(",")
        table = "\n".join([VISA, VISA_ROWS[0] + more, *VISA_ROWS[1:]])
        yield Case("visa", f"a row with {more!r}", "accept" if fine else "refuse", open_visa(table), "quote commas")
    for row in VISA_ROWS[:2]:
        both = row.replace("train", "?").replace("test", "train").replace("?", "test")
        yield Case("visa", f"also {both}", "refuse", open_visa("\n".join([VISA, *VISA_ROWS, both])), "both splits")
        yield Case("visa", f"again {row}", "refuse", open_visa("\n".join([VISA, *VISA_ROWS, row])), "listed twice")
    for junk in (b"", b"\n", rng.bytes(60), b"\xff\xfe", b"\0" * 40, b'"', (VISA + '\n"open,a\n').encode()):
        yield Case("visa", f"is {junk[:8]!r}", "refuse", open_visa(junk), r"1cls\.csv|no images|data_path|not in")


# -- welds -------------------------------------------------------------------------------------------------------------

HEAD = "CATEGORY,SUBDIRS,SPLIT"
RUNS = ("good,a/1,TRAIN", "good,a/2,TRAIN", "good,b/3,VAL", "overlap,b/4,VAL", "good,c/5,TEST", "spatter,c/6,TEST")


def put_run(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "s.csv").write_text("a,b\n1,2\n3,5\n")


def put_welds(folder: Path) -> None:
    for row in RUNS:
        put_run(folder / row.split(",")[1])
    put_run(folder / "d" / "é")


@functools.cache
def welds() -> Path:
    """Run folders that no case changes, made once."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-welds-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    put_welds(folder)
    return folder


def untouched(folder: Path) -> None:
    """Nothing is done to the runs."""


def open_manifest(
    table: str | bytes, *, count: int = 6, make: Callable[[Path], object] = untouched, name: str = "manifest.csv"
) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        if make is untouched:
            for place in welds().iterdir():
                (folder / place.name).symlink_to(place)
        else:
            put_welds(folder)
            make(folder)
        (folder / name).write_bytes(table if isinstance(table, bytes) else table.encode())
        return len(read_manifest(folder)) == count

    return act


def manifest(rng: np.random.Generator) -> Iterator[Case]:
    rows, said = "\n".join(RUNS), r"manifest\.csv"
    for encoding, fine in ENCODINGS.items():
        for newline in ("\n", "\r\n"):
            table = f"{HEAD}\n{rows}\ngood,d/é,TEST\n".replace("\n", newline).encode(encoding)
            yield Case(
                "manifest",
                f"in {encoding} lines {newline!r}",
                "accept" if fine else "refuse",
                open_manifest(table, count=7),
                said,
            )
    for index in range(20):
        order = rng.permutation(3)
        head = [HEAD.split(",")[i] for i in order]
        head = [str(rng.choice([title, title.lower(), title.title(), f" {title} "])) for title in head]
        body = [",".join(row.split(",")[i] for i in order) for row in rng.permutation(RUNS)]
        yield Case("manifest", f"shuffled {index}", "accept", open_manifest("\n".join([",".join(head), *body])))
    for name in CLASSES:
        spelled = name.replace("_", str(rng.choice(["_", "-", " "]))).title()
        yield Case(
            "manifest", f"category {spelled}", "accept", open_manifest(f"{HEAD}\n{rows}\n{spelled},d/é,TEST", count=7)
        )
    for row in range(len(RUNS)):
        for cell, odds in (
            (0, ("", "bad", "goood", "0", "good,x")),
            (1, ("", ".", "/", "a/", "a\0b", "a\x1b", "x" * 300)),
            (2, ("", "TRIAN", "0", "TRAIN,TEST", "-")),
        ):
            for odd in odds:
                cells = [line.split(",") for line in RUNS]
                cells[row][cell] = odd
                table = "\n".join([HEAD, *(",".join(line) for line in cells)])
                yield Case(
                    "manifest",
                    f"row {row} cell {cell} is {odd[:9]!r}",
                    "refuse",
                    open_manifest(table),
                    said,
                )
        for kept in (1, 2):
            lines = [*RUNS[:row], ",".join(RUNS[row].split(",")[:kept]), *RUNS[row + 1 :]]
            yield Case(
                "manifest", f"row {row} of {kept} cells", "refuse", open_manifest("\n".join([HEAD, *lines])), said
            )
        for more in (",x", ",,x", ",", ",,"):
            lines = [*RUNS[:row], RUNS[row] + more, *RUNS[row + 1 :]]
            expect = "accept" if not more.strip(",") else "refuse"
            yield Case(
                "manifest", f"row {row} with {more!r}", expect, open_manifest("\n".join([HEAD, *lines])), "quote commas"
            )
        for split in ("TRAIN", "VAL", "TEST"):
            again = ",".join([*RUNS[row].split(",")[:2], split])
            yield Case(
                "manifest",
                f"again {again}",
                "refuse",
                open_manifest("\n".join([HEAD, *RUNS, again])),
                r"is listed (in|twice)",
            )
            other = f"good,d/{Path(RUNS[row].split(',')[1]).name},{split}"

            def make(folder: Path, place: str = other.split(",")[1]) -> None:
                put_run(folder / place)

            yield Case(
                "manifest",
                f"same name {other}",
                "refuse",
                open_manifest("\n".join([HEAD, *RUNS, other]), make=make),
                "a name of its own",
            )
    no_split = "\n".join(["CATEGORY,SUBDIRS", *(row.rsplit(",", 1)[0] for row in RUNS)])
    yield Case("manifest", "no SPLIT at all", "accept", open_manifest(no_split))
    yield Case(
        "manifest",
        "runs.csv",
        "accept",
        open_manifest(no_split.replace("CATEGORY,SUBDIRS", "label,run_id"), name="runs.csv"),
    )
    for drop in ("CATEGORY", "SUBDIRS"):
        index = HEAD.split(",").index(drop)
        table = "\n".join(",".join(c for i, c in enumerate(line.split(",")) if i != index) for line in (HEAD, *RUNS))
        yield Case("manifest", f"no {drop}", "refuse", open_manifest(table), said)
    for junk in (b"", b"\n", rng.bytes(60), b"\xff\xfe", b"\0" * 40, HEAD.encode(), (HEAD + '\n"open').encode()):
        yield Case("manifest", f"is {junk[:8]!r} of {len(junk)}", "refuse", open_manifest(junk), said)
    yield from lost(rng)


def lost(rng: np.random.Generator) -> Iterator[Case]:
    """Folders that are gone or empty: refused with count and names, or listed."""
    for index in range(30):
        gone = sorted(rng.choice(6, int(rng.integers(1, 6)), replace=False).tolist())
        ways = [str(rng.choice(["gone", "empty", "readme", "file", "hidden"])) for _ in gone]
        names = [RUNS[i].split(",")[1] for i in gone]

        def make(folder: Path, names: list[str] = names, ways: list[str] = ways) -> None:
            for name, way in zip(names, ways, strict=True):
                (folder / name / "s.csv").unlink()
                if way in ("gone", "file"):
                    (folder / name).rmdir()
                if way == "file":
                    (folder / name).write_text("x")
                if way == "readme":
                    (folder / name / "readme.txt").write_text("x")
                if way == "hidden":
                    (folder / name / ".s.csv").write_text("a\n1\n")

        table = "\n".join([HEAD, *RUNS])
        yield Case(
            "manifest",
            f"lost {names} {ways} #{index}",
            "refuse",
            open_manifest(table, make=make),
            f"{len(gone)} of 6 runs are not there .*{names[0]}",
        )

        def skip(folder: Path, make: Callable[[Path], object] = make, names: list[str] = names) -> bool:
            put_welds(folder)
            make(folder)
            (folder / "manifest.csv").write_text("\n".join([HEAD, *RUNS]))
            runs = read_manifest(folder, on_error="skip")
            kept, skipped = readable_runs(runs, lambda run: load_raw(run, WeldSettings()))
            return len(kept) + len(names) == 6 and {one["path"] for one in skipped} == {str(folder / n) for n in names}

        yield Case("manifest", f"skipped {names} {ways} #{index}", "accept", skip)


def layouts(rng: np.random.Generator) -> Iterator[Case]:
    """MVTec's layout and plain folders, whole and with a part of them missing or odd."""
    parts = ("train/good/0.png", "train/good/1.png", "test/good/2.png", "test/bad/3.png")
    for dataset in ("mvtec", "btad", "folder", "hdmap", "demo"):
        for name in ("nut", "a b", "é", "n" * 200):

            def act(folder: Path, dataset: str = dataset, name: str = name) -> bool:
                put_images(folder / name, *parts)
                return len(open_dataset(dataset, folder)) == len(open_dataset(dataset, folder / name)) == 4

            yield Case("layout", f"{dataset} class {name[:9]!r}", "accept", act)
        for gone in ("train", "test", "train/good", "."):

            def act_gone(folder: Path, dataset: str = dataset, gone: str = gone) -> Any:
                put_images(
                    folder / "nut", *(part for part in parts if not f"./{part}".startswith((f"./{gone}/", f"{gone}/")))
                )
                return open_dataset(dataset, folder)

            yield Case("layout", f"{dataset} without {gone}", "refuse", act_gone, "folder|image")
        for odd in ("pipe", "loop", "file"):

            def act_odd(folder: Path, dataset: str = dataset, odd: str = odd) -> Any:
                place = folder / "nut"
                if odd == "pipe":
                    os.mkfifo(place)
                elif odd == "loop":
                    place.symlink_to("nut")
                else:
                    place.write_text("x")
                return open_dataset(dataset, folder)

            yield Case("layout", f"{dataset} class is a {odd}", "refuse", act_odd, "folder")

            def act_root(folder: Path, dataset: str = dataset, odd: str = odd) -> Any:
                act = {
                    "pipe": lambda: os.mkfifo(folder / "d"),
                    "loop": lambda: (folder / "d").symlink_to("d"),
                    "file": lambda: (folder / "d").write_text("x"),
                }
                act[odd]()
                return open_dataset(dataset, folder / "d")

            yield Case("layout", f"{dataset} root is a {odd}", "refuse", act_root, "no such folder")

        def act_bytes(folder: Path, dataset: str = dataset) -> Any:
            put_images(folder / "nut", *parts)
            os.rename(folder / "nut", os.path.join(os.fsencode(folder), b"n\xfft"))
            return open_dataset(dataset, folder)

        yield Case("layout", f"{dataset} class name no text", "refuse", act_bytes, "not text in UTF-8")
        for index in range(4):
            path = parts[index]

            def act_name(folder: Path, dataset: str = dataset, path: str = path) -> Any:
                put_images(folder / "nut", *parts)
                old = folder / "nut" / path
                os.rename(old, os.path.join(os.fsencode(old.parent), b"\xe9.png"))
                return open_dataset(dataset, folder)

            yield Case("layout", f"{dataset} {path} no text", "refuse", act_name, "not text in UTF-8")
