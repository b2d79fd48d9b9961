"""Structures that are none, tables that contradict themselves, a graph cache that knows its files."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly_lib.errors import UserError
from anomaly_lib.systems.crystal.data.dataset import CrystalRow, read_table, split_from_file
from anomaly_lib.systems.crystal.data.graph import GraphBuilder
from anomaly_lib.systems.crystal.data.settings import GraphSettings
from anomaly_lib.systems.crystal.data.store import GraphStore, build_graphs, cached_graphs, fingerprint
from anomaly_lib.systems.crystal.data.structure import (
    Crystal,
    crystal_from_record,
    make_crystal,
    read_crystal,
    write_cif,
)
from anomaly_lib.systems.crystal.detector import described_crystals
from scripts.crystal.describe_structures import main as describe_structures
from scripts.crystal.describe_structures import read_targets

CUBE = np.eye(3) * 4.0
SALT = make_crystal(CUBE, [[0, 0, 0], [0.5, 0.5, 0.5]], ["Na", "Cl"], "salt")


@pytest.mark.parametrize(
    ("lattice", "coords", "elements", "said"),
    [
        (CUBE, [[0, 0], [0.5, 0.5], [0, 0.5]], ["Na", "Cl"], "each of 2 atoms, has 3x2"),
        (CUBE, [0, 0, 0, 0.5, 0.5, 0.5], ["Na", "Cl"], "each of 2 atoms, has 6"),
        (CUBE, [[0, 0, 0]], ["Na", "Cl"], "each of 2 atoms, has 1x3"),
        (CUBE, [[0, 0, np.nan]], ["Na"], "finite coordinates"),
        (CUBE, [[0, 0, 0], [1]], ["Na", "Cl"], "must be numbers"),
        (CUBE, [["a", "b", "c"]], ["Na"], "must be numbers"),
        (CUBE, [], [], "has no atoms"),
        (CUBE.ravel(), [[0, 0, 0]], ["Na"], "3x3 finite numbers"),
        (CUBE * 1e200, [[0, 0, 0]], ["Na"], "farther than 10000 Angstrom"),
        (CUBE, [[1e9, 0, 0]], ["Na"], "farther than 10000 Angstrom"),
        (np.full((3, 3), np.inf), [[0, 0, 0]], ["Na"], "3x3 finite numbers"),
    ],
)
def test_shapes_and_sizes_are_checked_and_nothing_is_reshaped(
    lattice: Any, coords: Any, elements: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said) as refused:
        make_crystal(lattice, coords, elements, "c")
    assert "\n" not in str(refused.value)


def test_an_element_that_is_none() -> None:
    with pytest.raises(UserError, match="an atom is of no element"):
        Crystal(CUBE, np.zeros((1, 3)), np.array([0]))


@pytest.mark.parametrize("second", [[0, 0, 0], [0.01, 0, 0], [1, -1, 2], [0.999, 0, 0]])
def test_coincident_atoms_are_refused(second: list[float]) -> None:
    with pytest.raises(UserError, match=r"double: atoms . and . are .* Angstrom apart: one atom that is listed twice"):
        GraphBuilder()(make_crystal(CUBE, [[0, 0, 0], second], ["Na", "Cl"], "double"))
    graphs = build_graphs([SALT, make_crystal(CUBE, [[0, 0, 0], second], ["Na", "Cl"], "double")], GraphSettings())
    assert list(graphs.errors) == [1]


def test_a_very_oblique_cell_is_refused() -> None:
    with pytest.raises(UserError, match="oblique: a bond crosses 500 cells"):
        GraphBuilder()(make_crystal([[3, 0, 0], [3000, 3, 0], [0, 0, 3]], [[0, 0, 0]], ["Na"], "oblique"))


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b"null", b"3", b'{"atoms": []}', b'{"atoms": 5}', b'{"atoms": {"lattice": 1e999}}', b"",
     b'{"lattice": [[4,0,0],[0,4,0],[0,0,4]], "coords": [[0,0,' + b"9" * 400 + b']], "elements": ["Na"]}'],
)  # fmt: skip
def test_odd_json_structures(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json: ") as refused:
        read_crystal(tmp_path / "x.json")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_records_of_other_types() -> None:
    for record in ({"atoms": None}, {"lattice": "abc", "coords": 3, "elements": 3}, {"lattice": CUBE, "coords": {}}):
        with pytest.raises(UserError, match="not a JARVIS structure"):
            crystal_from_record(record)


def test_names_of_structures(tmp_path: Path) -> None:
    for name in ("a@1.cif", "naïve.cif", f"{'n' * 240}.cif"):
        write_cif(tmp_path / name, SALT)
        assert read_crystal(tmp_path / name).numbers.tolist() == [11, 17]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.cif")
        with pytest.raises(UserError, match=r"pipe\.cif: a named pipe, no structure file"):
            read_crystal(tmp_path / "pipe.cif")


@pytest.mark.parametrize(
    "given",
    [
        None,
        3,
        b"",
        set(),
        [],
        (),
        (SALT, "a", "b"),
        (SALT, ["a", "b"]),
        [(SALT, 3)],
        ("a.cif", "b.cif"),
        {"a": 1},
        [[]],
    ],
)
def test_one_crystal_has_one_text(given: Any) -> None:
    with pytest.raises(UserError) as refused:
        described_crystals(given)
    assert "\n" not in str(refused.value)


# -- tables ------------------------------------------------------------------------------------------------------------


def data_set(root: Path, rows: str, encoding: str = "utf-8") -> Path:
    folder = root / "jarvis" / "gap"
    (folder / "cif").mkdir(parents=True, exist_ok=True)
    for name in ("a", "b"):
        write_cif(folder / "cif" / f"{name}.cif", SALT)
    (folder / "description.csv").write_bytes(("Id,Composition,prop,Description,File_Name\n" + rows).encode(encoding))
    return root


def test_tables_of_crystals(tmp_path: Path) -> None:
    rows = "a,NaCl,1.5,first é,a.cif\nb,NaCl,2.5,second,b.cif\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        table = read_table(data_set(tmp_path, rows, encoding), "jarvis", "gap")
        assert [(row.id, row.target) for row in table.rows] == [("a", 1.5), ("b", 2.5)]
    for bad, encoding, said in (
        (rows, "latin-1", "not text in UTF-8"),
        (rows + "c,NaCl,3\n", "utf-8", "line 4: expected 5 fields, found 3"),
        (rows + "c,NaCl,3,x,y,z\n", "utf-8", "line 4: expected 5 fields, found 6"),
        (rows + "c,NaCl,high,x,y\n", "utf-8", "line 4: target 'high' is not a number"),
        (rows + "c,NaCl,3,x,c.cif\n", "utf-8", "1 structure files of description.csv are missing .first: c."),
    ):
        with pytest.raises(UserError, match=said):
            read_table(data_set(tmp_path, bad, encoding), "jarvis", "gap")


def test_odd_split_files(tmp_path: Path) -> None:
    rows = [CrystalRow(name, 0.0, "", SALT) for name in "abc"]
    for content in (None, [], {"train": 3}, {"train": ["a"], "val": None, "test": ["c"]}, "x"):
        (tmp_path / "s.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"s\.json: not a split file"):
            split_from_file(tmp_path / "s.json", rows)
    with pytest.raises(UserError, match=r"t\.json: no such file"):
        split_from_file(tmp_path / "t.json", rows)


def test_targets_may_leave_the_suffix_out(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("JVASP-1.cif", "JVASP-2.cif"):
        write_cif(tmp_path / "in" / name, SALT)
    (tmp_path / "id_prop.csv").write_text("JVASP-1,0.5\nJVASP-2.cif,0.7\n")
    words = ["--structures", str(tmp_path / "in"), "--targets", str(tmp_path / "id_prop.csv"), "--property", "gap"]
    assert describe_structures([*words, "--root-dir", str(tmp_path / "out")]) == 0
    table = read_table(tmp_path / "out", "jarvis", "gap")
    assert [(row.id, row.target) for row in table.rows] == [("JVASP-1", 0.5), ("JVASP-2", 0.7)]


@pytest.mark.parametrize("head", ["id,target", "\ufeffId, formation_energy", "File_Name,prop,"])
def test_targets_may_have_a_header(head: str, tmp_path: Path) -> None:
    (tmp_path / "id_prop.csv").write_text(f"{head}\na.cif,1.5\nPOSCAR-7,-2\n", encoding="utf-8")
    assert read_targets(tmp_path / "id_prop.csv") == [("a.cif", 1.5), ("POSCAR-7", -2.0)]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "lists no structure"),
        ("id,target\n", "lists no structure"),
        ("a,1\nid,target\n", "line 2: expected a file name and a number"),
        ("a,1\na,2\n", "line 2: a is listed twice"),
        ("a,nan\n", "a finite number"),
        ("a\n", "expected a file name and a number"),
        (",1\n", "expected a file name"),
        ("a,x\n", "expected a file name and a number"),
    ],
)
def test_odd_targets(tmp_path: Path, rows: str, said: str) -> None:
    (tmp_path / "t.csv").write_text(rows)
    with pytest.raises(UserError, match=said):
        read_targets(tmp_path / "t.csv")


def test_two_rows_of_one_structure_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cif(tmp_path / "a.cif", SALT)
    (tmp_path / "t.csv").write_text("a,1\na.cif,2\n")
    words = ["--structures", str(tmp_path), "--targets", str(tmp_path / "t.csv"), "--root-dir", str(tmp_path / "out")]
    assert describe_structures(words) == 2
    assert "two rows mean the structure a" in capsys.readouterr().err


# -- the cache of graphs -----------------------------------------------------------------------------------------------


def test_the_key_of_the_graph_cache_holds_folder_and_change(tmp_path: Path) -> None:
    settings, paths = GraphSettings(), []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "a.cif")
        write_cif(paths[-1], SALT)
        os.utime(paths[-1], ns=(10**18, 10**18))
    assert fingerprint(paths[:1], settings) != fingerprint(paths[1:], settings)  # same name, size and time
    before = fingerprint(paths[:1], settings)
    assert fingerprint(paths[:1], settings) == before
    text = paths[0].read_text()
    paths[0].write_text(text.replace("0.50000000", "0.40000000"))
    os.utime(paths[0], ns=(10**18, 10**18))  # as `cp -p` does: size and time are those of before
    assert fingerprint(paths[:1], settings) != before


def test_every_byte_of_the_graph_cache_is_checked(tmp_path: Path) -> None:
    broken = tmp_path / "absent.cif"
    cached_graphs([SALT, broken], GraphSettings(), cache_dir=tmp_path)
    (file,) = tmp_path.glob("*.bin")
    whole = file.read_bytes()
    opened = GraphStore.open(file)
    assert opened is not None
    assert list(opened.errors) == [1]
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        found = GraphStore.open(file)
        padding = (
            found is not None and found.errors == opened.errors and np.array_equal(found[0].vectors, opened[0].vectors)
        )
        assert found is None or padding, place
    for length in range(0, len(whole), 101):
        file.write_bytes(whole[:length])
        assert GraphStore.open(file) is None, length
