"""Crystals: structure files of every format, crystals in memory, tables, splits and targets."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_lib.systems.crystal.data.dataset import CrystalRow, read_table, split_from_file
from anomaly_lib.systems.crystal.data.graph import GraphBuilder
from anomaly_lib.systems.crystal.data.settings import GraphSettings
from anomaly_lib.systems.crystal.data.store import GraphStore, cached_graphs
from anomaly_lib.systems.crystal.data.structure import Crystal, make_crystal, read_crystal, write_cif
from anomaly_lib.systems.crystal.detector import described_crystals
from scripts.crystal.describe_structures import read_targets
from tests.fuzz.lists import ENCODINGS
from tests.fuzz.oracle import Case
from tests.fuzz.pictures import NO_FILES

ELEMENTS = ("H", "Li", "O", "Na", "Si", "Cl", "Fe", "Cu", "Ag", "Cs", "U", "Fm")
ODD: tuple[Any, ...] = (None, True, 3, 3.5, float("nan"), float("inf"), "x", "", [], {}, [[]], [None], [[1, 2], [3]],
                        [[0, 0]], [[0, 0, 0, 0]], [0, 0, 0], [["a", "b", "c"]], [[1e999, 0, 0]], [[10**400, 0, 0]],
                        [[0, 0, 0]] * 5, {"a": [0, 0, 0]}, [[None, 0, 0]])  # fmt: skip


def crystal(rng: np.random.Generator, atoms: int = 0) -> Crystal:
    """A random cell whose atoms keep apart."""
    atoms = atoms or int(rng.integers(1, 6))
    lattice = np.diag(rng.uniform(4, 9, 3)) + rng.uniform(-0.8, 0.8, (3, 3))
    grid = np.stack(np.meshgrid(*[np.arange(2) / 2] * 3), -1).reshape(-1, 3)
    places = rng.permutation(grid)[:atoms] + rng.uniform(0, 0.1, (atoms, 3))
    return make_crystal(lattice, places, [str(one) for one in rng.choice(ELEMENTS[:-1], atoms)], "cell")


def same(found: Crystal, want: Crystal) -> bool:
    graphs = [GraphBuilder()(one) for one in (found, want)]
    lengths = [np.sort(np.linalg.norm(graph.vectors, axis=1)) for graph in graphs]
    return sorted(found.numbers) == sorted(want.numbers) and len(lengths[0]) == len(lengths[1]) and bool(
        np.allclose(*lengths, atol=1e-3)
    )  # fmt: skip


def poscar(one: Crystal, *, cartesian: bool = False) -> str:
    order = np.argsort(one.numbers, kind="stable")
    numbers, counts = np.unique(one.numbers, return_counts=True)
    symbols = [one.symbols[int(np.flatnonzero(one.numbers == number)[0])] for number in numbers]
    places = (one.frac_coords @ one.lattice if cartesian else one.frac_coords)[order]
    rows = ["cell", "1.0", *(" ".join(f"{x:.10f}" for x in row) for row in one.lattice), " ".join(symbols)]
    rows += [" ".join(map(str, counts)), "Cartesian" if cartesian else "Direct"]
    return "\n".join([*rows, *(" ".join(f"{x:.10f}" for x in row) for row in places)]) + "\n"


def extxyz(one: Crystal, pbc: str = "T T T") -> str:
    flat = " ".join(f"{x:.10f}" for x in one.lattice.ravel())
    atoms = zip(one.symbols, one.frac_coords @ one.lattice, strict=True)
    rows = [f"{symbol} " + " ".join(f"{x:.10f}" for x in place) for symbol, place in atoms]
    head = f'Lattice="{flat}" Properties=species:S:1:pos:R:3 pbc="{pbc}"'
    return "\n".join([str(len(rows)), head, *rows]) + "\n"


def record(one: Crystal, *, cartesian: bool = False) -> dict[str, Any]:
    places = one.frac_coords @ one.lattice if cartesian else one.frac_coords
    atoms = {"lattice_mat": one.lattice.tolist(), "coords": places.tolist(), "elements": one.symbols}
    return {"atoms": atoms | {"cartesian": cartesian}, "id": "x"}


def opened(name: str, content: str | bytes, want: Crystal | None = None) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        found = read_crystal(folder / name)
        GraphBuilder()(found)
        return want is None or same(found, want)

    return act


def cif(one: Crystal, folder: Path) -> str:
    write_cif(folder / "made.cif", one)
    return (folder / "made.cif").read_text(encoding="utf-8")


def files(rng: np.random.Generator) -> Iterator[Case]:
    for index in range(25):
        one = crystal(rng)

        def round_trip(folder: Path, one: Crystal = one) -> bool:
            write_cif(folder / "a.cif", one)
            return same(read_crystal(folder / "a.cif"), one)

        yield Case("structure", f"cif #{index}", "accept", round_trip)
        for cartesian in (False, True):
            yield Case(
                "structure",
                f"POSCAR {cartesian} #{index}",
                "accept",
                opened("POSCAR", poscar(one, cartesian=cartesian), one),
            )
            text = json.dumps(record(one, cartesian=cartesian))
            yield Case("structure", f"json {cartesian} #{index}", "accept", opened("a.json", text, one))
        yield Case("structure", f"extxyz #{index}", "accept", opened("a.extxyz", extxyz(one), one))
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        one = crystal(rng)
        yield Case(
            "structure",
            f"json in {encoding}",
            "accept",
            opened("a.json", json.dumps(record(one)).encode(encoding), one),
        )
    for name in ("a@1.cif", "a b.cif", "é.cif", "A.CIF", "n" * 230 + ".cif"):

        def named(folder: Path, name: str = name, one: Crystal = crystal(rng)) -> bool:  # noqa: B008
            write_cif(folder / name, one)
            return same(read_crystal(folder / name), one)

        yield Case("structure", f"named {name[:9]}", "accept", named)
    texts = {"a.cif": cif_text(rng), "POSCAR": poscar(crystal(rng, 3)), "a.extxyz": extxyz(crystal(rng, 3)),
             "a.json": json.dumps(record(crystal(rng, 3)))}  # fmt: skip
    for name, text in texts.items():
        said = name.replace(".", r"\.")
        for share in (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
            yield Case(
                "structure", f"{name} cut to {share}", "refuse", opened(name, text[: int(share * len(text))]), said
            )
        for junk in (
            b"\0" * 50,
            rng.bytes(80),
            b"hello",
            b"\xff\xfe\x00",
            b"[" * 50_000,
            b"data_",
            b"\n" * 9,
            b"<xml/>",
        ):
            yield Case("structure", f"{name} of {junk[:7]!r}", "refuse", opened(name, junk), said)
        places = sorted(rng.choice(len(text), 25, replace=False).tolist())
        for place in places:
            bent = text[:place] + chr(int(rng.integers(33, 126))) + text[place + 1 :]
            yield Case("structure", f"{name} bent at {place}", "either", opened(name, bent))
        for what, make in NO_FILES.items():

            def act(folder: Path, name: str = name, make: Callable[[Path], object] = make) -> Any:
                make(folder / name)
                return read_crystal(folder / name)

            yield Case("structure", f"{name} is {what}", "refuse", act, "structure file|cannot be read")
    for pbc in ("F F F", "T T F", "F T T"):
        yield Case(
            "structure", f"pbc {pbc}", "refuse", opened("a.extxyz", extxyz(crystal(rng), pbc)), "no periodic cell"
        )
    for share in ("0.5", "0.0", "0.99", "1.5"):
        text = cif_text(rng).replace(" 1\n", f" {share}\n")
        expect = "either" if share == "0.0" else "refuse"
        yield Case("structure", f"occupancy {share}", expect, opened("a.cif", text), r"a\.cif")
    yield from records(rng)


def cif_text(rng: np.random.Generator) -> str:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return cif(crystal(rng, 4), Path(folder))


def records(rng: np.random.Generator) -> Iterator[Case]:
    """JARVIS records with a part of another kind."""
    good = record(make_crystal(np.eye(3) * 4, [[0, 0, 0], [0.5, 0.5, 0.5]], ["Na", "Cl"]))
    for key in ("lattice_mat", "coords", "elements", "cartesian"):
        for index, odd in enumerate(ODD):
            changed = copy.deepcopy(good)
            changed["atoms"][key] = odd
            if key == "cartesian":
                fine = not odd or (odd == odd and bool(odd))  # any truth value; 0.5 Angstrom apart is still apart
                yield Case(
                    "record",
                    f"cartesian is #{index}",
                    "accept" if fine or odd != odd else "refuse",
                    opened("a.json", json.dumps(changed)),
                )
                continue
            yield Case(
                "record", f"{key} is #{index} {odd!r:.15}", "refuse", opened("a.json", json.dumps(changed)), r"a\.json"
            )
        if key != "cartesian":
            changed = copy.deepcopy(good)
            del changed["atoms"][key]
            yield Case("record", f"no {key}", "refuse", opened("a.json", json.dumps(changed)), r"a\.json")
    for index, odd in enumerate(ODD):
        yield Case(
            "record",
            f"atoms is #{index} {odd!r:.15}",
            "refuse",
            opened("a.json", json.dumps({"atoms": odd})),
            r"a\.json",
        )
        yield Case("record", f"is #{index} {odd!r:.15}", "refuse", opened("a.json", json.dumps(odd)), r"a\.json")
    for symbol in ("Xx", "", " ", "na", "NaCl", "Lr", "X", "1", "\u00e9", "D", "T", " Na ", "Fm"):
        changed = copy.deepcopy(good)
        changed["atoms"]["elements"][0] = symbol
        fine = symbol in ("D", "T", " Na ", "Fm")
        yield Case(
            "record",
            f"element {symbol!r}",
            "accept" if fine else "refuse",
            opened("a.json", json.dumps(changed)),
            r"a\.json",
        )
    for index in range(40):
        atoms = int(rng.integers(1, 7))
        shape = tuple(int(n) for n in rng.integers(1, 7, int(rng.integers(1, 4))))
        fine = shape == (atoms, 3)
        changed = copy.deepcopy(good)
        spread = np.linspace(0, 0.9, int(np.prod(shape))).reshape(shape)
        changed["atoms"] |= {"coords": spread.tolist(), "elements": ["Na"] * atoms}
        yield Case(
            "record",
            f"{atoms} atoms, coords {shape} #{index}",
            "accept" if fine else "refuse",
            opened("a.json", json.dumps(changed)),
            r"a\.json",
        )
    for index in range(30):  # one atom twice, perhaps through the border of the cell
        one = crystal(rng, 4)
        shift, hair = rng.integers(-2, 3, 3), rng.uniform(-0.005, 0.005, 3)
        places = np.vstack([one.frac_coords, one.frac_coords[int(rng.integers(4))] + shift + hair])
        double = Crystal(one.lattice, places, np.append(one.numbers, one.numbers[0]), "cell")
        yield Case(
            "record", f"an atom twice #{index}", "refuse", opened("a.json", json.dumps(record(double))), "listed twice"
        )
    for scale in (1e-300, 1e-9, 1e-3, 0.02, 3e3, 1e5, 1e100, 1e300):
        changed = copy.deepcopy(good)
        changed["atoms"]["lattice_mat"] = (np.eye(3) * 4 * scale).tolist()
        yield Case("record", f"a cell of {scale}", "refuse", opened("a.json", json.dumps(changed)), r"a\.json")
    for lattice in (
        [[4, 0, 0], [4, 0, 0], [0, 0, 4]],
        [[0] * 3] * 3,
        [[4, 0, 0], [0, 4, 0], [4, 4, 0]],
        [[3, 0, 0], [3000, 3, 0], [0, 0, 3]],
    ):
        changed = copy.deepcopy(good)
        changed["atoms"]["lattice_mat"] = lattice
        yield Case("record", f"flat or oblique {lattice}", "refuse", opened("a.json", json.dumps(changed)), r"a\.json")


def handed(rng: np.random.Generator) -> Iterator[Case]:
    """What a crystal detector is handed."""
    one, other = crystal(rng), crystal(rng)
    wrong: tuple[Any, ...] = (None, 3, b"", b"a.cif", set(), {}, (), [], [[]], [None], [one, None], (one,), (one, 3),
             (one, ["a", "b"]), (one, "a", "b"), (one, other), ("a.cif", "b.cif"), "nowhere.cif", "", ".", np.zeros(3),
             [(one, b"text")], iter([one]), "a.txt", [one, 5.0], (None, "text"), ["nowhere.cif"], "\0.cif")  # fmt: skip
    for index, odd in enumerate(wrong):
        yield Case("crystals", f"#{index} {type(odd).__name__}", "refuse", lambda _, odd=odd: described_crystals(odd))
    right = {
        "one": one,
        "many": [one, other],
        "pair": (one, "a text"),
        "pairs": [(one, "a"), (other, "b")],
        "mixed": [one, (other, "")],
    }
    for name, good in right.items():
        yield Case("crystals", name, "accept", lambda _, good=good: bool(described_crystals(good)))


# -- tables ------------------------------------------------------------------------------------------------------------

HEAD, ROWS = (
    "Id,Composition,prop,Description,File_Name",
    ("a,NaCl,1.5,first,a.cif", "b,NaCl,2,second,b.cif", "c,X,-3e1,third,c.cif"),
)


def open_table(content: str | bytes, count: int = 3, on_error: str = "fail", gone: str = "") -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        place = folder / "jarvis" / "gap"
        (place / "cif").mkdir(parents=True)
        for name in "abc":
            if name not in gone:
                (place / "cif" / f"{name}.cif").write_text("x")
        (place / "description.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
        return len(read_table(folder, "jarvis", "gap", on_error=on_error).rows) == count

    return act


def tables(rng: np.random.Generator) -> Iterator[Case]:
    whole, said = "\n".join([HEAD, *ROWS]), r"description\.csv"
    for encoding, fine in ENCODINGS.items():
        for newline in ("\n", "\r\n", "\r"):
            text = whole.replace("first", "é").replace("\n", newline).encode(encoding)
            yield Case(
                "crystal table",
                f"in {encoding} lines {newline!r}",
                "accept" if fine else "refuse",
                open_table(text),
                said,
            )
    for row in range(3):
        for target in ("", "na", "NaN", "None", "null", "inf", "1e999"):
            lines = list(ROWS)
            cells = lines[row].split(",")
            lines[row] = ",".join([*cells[:2], target, *cells[3:]])
            yield Case(
                "crystal table", f"row {row} target {target!r}", "accept", open_table("\n".join([HEAD, *lines]), 2)
            )
        for target in ("x", "1,5", "1.5 eV", "--", "0x1", "1e"):
            lines = list(ROWS)
            cells = lines[row].split(",")
            lines[row] = ",".join([*cells[:2], target, *cells[3:]])
            yield Case(
                "crystal table", f"row {row} target {target!r}", "refuse", open_table("\n".join([HEAD, *lines])), said
            )
        for kept in (1, 2, 3, 4):
            lines = [*ROWS[:row], ",".join(ROWS[row].split(",")[:kept]), *ROWS[row + 1 :]]
            yield Case(
                "crystal table",
                f"row {row} of {kept} cells",
                "refuse",
                open_table("\n".join([HEAD, *lines])),
                "expected 5 fields",
            )
        for more in (",", ",x", ",x,y"):
            lines = [*ROWS[:row], ROWS[row] + more, *ROWS[row + 1 :]]
            yield Case(
                "crystal table",
                f"row {row} with {more}",
                "refuse",
                open_table("\n".join([HEAD, *lines])),
                "expected 5 fields",
            )
        name = "abc"[row]
        yield Case(
            "crystal table", f"{name}.cif gone", "refuse", open_table(whole, gone=name), f"1 structure files .*{name}"
        )
        yield Case("crystal table", f"{name}.cif skipped", "accept", open_table(whole, 2, "skip", gone=name))
        yield Case("crystal table", f"{name} twice", "accept", open_table("\n".join([whole, ROWS[row]])))
    for junk in (b"", b"\n\n", HEAD.encode(), rng.bytes(80), b"\xff\xfe", b"\0" * 30, (HEAD + '\n"open').encode()):
        yield Case("crystal table", f"is {junk[:8]!r} of {len(junk)}", "refuse", open_table(junk), said)
    rows = [CrystalRow(name, 0.0, "", crystal(rng)) for name in "abcd"]
    good: dict[str, Any] = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    for part in good:
        for index, odd in enumerate((None, 3, [], {}, "", [[]], ["x"], ["a", "b", "c", "d"], [None], True)):
            yield Case(
                "split file",
                f"{part} is #{index}",
                "refuse",
                split_of(json.dumps(good | {part: odd}), rows),
                r"s\.json",
            )
        yield Case(
            "split file",
            f"no {part}",
            "refuse",
            split_of(json.dumps({k: v for k, v in good.items() if k != part}), rows),
            r"s\.json",
        )
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        yield Case("split file", f"in {encoding}", "accept", split_of(json.dumps(good).encode(encoding), rows))
    text = json.dumps(good)
    for place in range(0, len(text), 5):
        yield Case("split file", f"cut to {place}", "refuse", split_of(text[:place], rows), r"s\.json")
    for rows_ in ("a,1\nb,2", "a,1\n\nb,2\n", "a,1,more\nb,2", "a , 1\nb , 2e0", "a,1"):
        yield Case("targets", repr(rows_), "accept", targets_of(rows_))
    for rows_ in ("a,1\na,1", "a", "a,x", "a,nan", "a,inf", ",1", "a,1\nb", "a;1", "a,1\nb,", "a,1\nb,1\na,2"):
        yield Case("targets", repr(rows_), "refuse", targets_of(rows_), r"t\.csv, line")


def split_of(content: str | bytes, rows: list[CrystalRow]) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        (folder / "s.json").write_bytes(content if isinstance(content, bytes) else content.encode())
        found = split_from_file(folder / "s.json", rows)
        return (found.train, found.val, found.test) == ([0, 1], [2], [3])

    return act


def targets_of(content: str) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        (folder / "t.csv").write_text(content)
        return read_targets(folder / "t.csv") in ([("a", 1.0), ("b", 2.0)], [("a", 1.0)])

    return act


def caches(rng: np.random.Generator) -> Iterator[Case]:
    """The file of graphs, bent or cut: made anew, never read wrongly."""
    sources = [crystal(rng) for _ in range(3)]
    for index in range(60):
        share, bit, cut = float(rng.random()), 1 << int(rng.integers(8)), bool(index % 3 == 0)

        def act(folder: Path, share: float = share, bit: int = bit, cut: bool = cut) -> bool:
            fresh, _ = cached_graphs(sources, GraphSettings(), cache_dir=folder)
            (file,) = folder.glob("*.bin")
            content = bytearray(file.read_bytes())
            place = int(share * len(content))
            content[place] ^= bit
            file.write_bytes(content[:place] if cut else content)
            opened_, _ = GraphStore.open(file), None
            again, _ = cached_graphs(sources, GraphSettings(), cache_dir=folder)
            return (not cut or opened_ is None) and all(
                np.array_equal(getattr(a, name), getattr(b, name))
                for a, b in zip(fresh, again, strict=True)
                for name in ("numbers", "source", "target", "vectors")
            )

        yield Case("graph cache", f"{'cut' if cut else 'bent'} at {share:.3f} bit {bit}", "accept", act)
