"""Structures, graphs, files and texts of the crystal system."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from anomaly_lib.errors import UserError
from anomaly_lib.models.crystal.elements import NUM_ATOM_FEATURES, atom_feature_table, atomic_number
from anomaly_lib.systems.crystal.data.dataset import random_split, read_table, split_from_file
from anomaly_lib.systems.crystal.data.demo import demo_table, write_crystal_demo
from anomaly_lib.systems.crystal.data.graph import GraphBuilder
from anomaly_lib.systems.crystal.data.settings import GraphSettings
from anomaly_lib.systems.crystal.data.store import GraphStore, build_graphs, cached_graphs
from anomaly_lib.systems.crystal.data.structure import (
    Crystal,
    crystal_from_record,
    make_crystal,
    read_crystal,
    write_cif,
)
from anomaly_lib.systems.crystal.data.text import (
    describe,
    describe_with_robocrystallographer,
    keep_levels,
    normalize_text,
    reduced_formula,
)

SALT = make_crystal(
    np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]) * 5.64, [[0, 0, 0], [0.5, 0.5, 0.5]], ["Na", "Cl"], "salt"
)


def shells_by_loops(crystal: Crystal, k: int, reach: int = 3) -> list[list[float]]:
    """Sorted distances up to the whole k-th shell of every atom, by brute force."""
    images = [np.array([a, b, c]) for a in range(-reach, reach + 1) for b in range(-reach, reach + 1)
              for c in range(-reach, reach + 1)]  # fmt: skip
    out = []
    for f in crystal.frac_coords:
        found = sorted(
            float(np.linalg.norm((g + T - f) @ crystal.lattice)) for g in crystal.frac_coords for T in images
        )
        found = [d for d in found if d > 0.15]
        out.append([d for d in found if d <= found[k - 1] + 1e-3])
    return out


def test_element_table() -> None:
    table = atom_feature_table()
    assert table.shape == (100, NUM_ATOM_FEATURES)
    assert table[0, [1, 19, 30, 36, 46 + 1 - 1]].tolist() == [1, 1, 1, 1, 1]
    assert len(np.unique(table, axis=0)) == 92
    assert atomic_number("Fm") == 100
    assert atomic_number("D") == 1
    with pytest.raises(UserError, match="Xx"):
        atomic_number("Xx")


@pytest.mark.data
def test_element_table_equals_the_published_file(real_data: Path) -> None:
    import gzip

    with gzip.open(real_data / "crystal" / "cgcnn_atom_init.json.gz", "rt") as stream:
        published = json.load(stream)
    assert (atom_feature_table() == np.array([published[str(z)] for z in range(1, 101)])).all()


def test_neighbours_are_whole_shells() -> None:
    graph = GraphBuilder()(SALT)
    for atom, want in enumerate(shells_by_loops(SALT, 12)):
        have = np.sort(np.linalg.norm(graph.vectors[graph.target == atom], axis=1))
        assert len(want) == 18  # 6 nearest and the whole second shell of 12
        np.testing.assert_allclose(have, want, atol=1e-4)


def test_graph_is_symmetric_sorted_and_points_the_right_way() -> None:
    crystal = demo_table(count=3, seed=4).rows[2].source
    assert isinstance(crystal, Crystal)
    graph = GraphBuilder()(crystal)
    forward = {(s, t, *np.round(v, 3)) for s, t, v in zip(graph.source, graph.target, graph.vectors, strict=True)}
    backward = {(t, s, *np.round(-v, 3)) for s, t, v in zip(graph.source, graph.target, graph.vectors, strict=True)}
    assert forward == backward
    assert len(forward) == len(graph.source)
    assert (np.diff(graph.target) >= 0).all()
    frac = (graph.vectors @ np.linalg.inv(crystal.lattice)) - (
        crystal.frac_coords[graph.target] - crystal.frac_coords[graph.source]
    )
    np.testing.assert_allclose(frac, np.round(frac), atol=1e-4)


def test_original_switches_add_edges() -> None:
    clean = GraphBuilder()(SALT)
    doubled = GraphBuilder(periodic_images="doubled")(SALT)
    raw = GraphBuilder(use_canonize=False)(SALT)
    itself = int((clean.source == clean.target).sum())
    assert len(doubled.source) == len(clean.source) + itself
    assert len(raw.source) == 2 * len(clean.source)


def test_lone_atom_in_a_large_box_still_gets_its_neighbours() -> None:
    helium = make_crystal(np.eye(3) * 40.0, [[0.3, 0.3, 0.3]], ["He"])
    graph = GraphBuilder()(helium)
    lengths = np.unique(np.round(np.linalg.norm(graph.vectors, axis=1), 3))
    assert len(graph.source) == 6 + 12
    np.testing.assert_allclose(lengths, [40.0, 40.0 * 2**0.5], atol=1e-3)


def test_readers_agree(tmp_path: Path) -> None:
    write_cif(tmp_path / "salt.cif", SALT)
    rows = "\n".join(" ".join(f"{x:.10f}" for x in row) for row in SALT.lattice)
    positions = "\n".join(" ".join(f"{x:.10f}" for x in row) for row in SALT.frac_coords)
    (tmp_path / "POSCAR").write_text(f"NaCl\n1.0\n{rows}\nNa Cl\n1 1\nDirect\n{positions}\n")
    flat = " ".join(f"{x:.10f}" for x in SALT.lattice.ravel())
    atoms = "\n".join(
        f"{s} " + " ".join(f"{x:.10f}" for x in p)
        for s, p in zip(SALT.symbols, SALT.frac_coords @ SALT.lattice, strict=True)
    )
    (tmp_path / "salt.extxyz").write_text(f'2\nLattice="{flat}" Properties=species:S:1:pos:R:3 pbc="T T T"\n{atoms}\n')
    record = {
        "atoms": {
            "lattice_mat": SALT.lattice.tolist(),
            "coords": (SALT.frac_coords @ SALT.lattice).tolist(),
            "elements": ["Na", "Cl"],
            "cartesian": True,
        }
    }
    (tmp_path / "salt.json").write_text(json.dumps(record))
    want = GraphBuilder()(SALT)
    for name in ("salt.cif", "POSCAR", "salt.extxyz", "salt.json"):
        crystal = read_crystal(tmp_path / name)
        assert crystal.numbers.tolist() == [11, 17]
        graph = GraphBuilder()(crystal)
        have = np.sort(np.linalg.norm(graph.vectors, axis=1))
        np.testing.assert_allclose(have, np.sort(np.linalg.norm(want.vectors, axis=1)), atol=1e-4)


def test_bad_structures_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "broken.cif").write_text("data_x\n_cell_length_a notanumber\n")
    with pytest.raises(UserError, match=r"broken\.cif"):
        read_crystal(tmp_path / "broken.cif")
    write_cif(tmp_path / "partial.cif", SALT)
    text = (tmp_path / "partial.cif").read_text().replace("0.50000000 0.50000000 0.50000000 1", "0.5 0.5 0.5 0.6")
    (tmp_path / "partial.cif").write_text(text)
    with pytest.raises(UserError, match=r"partial\.cif: site .* partially occupied"):
        read_crystal(tmp_path / "partial.cif")
    with pytest.raises(UserError, match="no such structure"):
        read_crystal(tmp_path / "absent.cif")
    with pytest.raises(UserError, match="not a JARVIS structure"):
        crystal_from_record({"elements": ["Na"]}, "r")
    for name, content, said in (
        ("cut.json", '{"atoms": {', "not valid JSON|not text"),
        ("list.json", "[1, 2]", "expected one object"),
        ("bytes.json", b"\xff\xfe\x00", "not valid JSON|not text"),
        ("element.json", '{"lattice": [[3,0,0],[0,3,0],[0,0,3]], "coords": [[0,0,0]], "elements": ["Xx"]}', "'Xx'"),
        ("number.json", '{"lattice": [[3,0,0],[0,3,0],[0,0,3]], "coords": [[0,0,0]], "elements": [11]}', "JARVIS"),
        ("flat.json", '{"lattice": [[3,0,0],[3,0,0],[0,0,3]], "coords": [[0,0,0]], "elements": ["Na"], '
                      '"cartesian": true}', "Singular"),
        ("nan.json", '{"lattice": [[NaN,0,0],[0,3,0],[0,0,3]], "coords": [[0,0,0]], "elements": ["Na"]}', "finite"),
        ("bytes.cif", b"\xff\xfe\x00data_", "not a readable cif"),
        ("empty.extxyz", "", "not a readable extxyz"),
        ("POSCAR-1", "NaCl\n1.0\n", "not a readable vasp"),
        ("box.xyz", "1\nno cell\nNa 0 0 0\n", "no periodic cell"),
        ("x.pdb", "", "unknown structure format"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError, match=said) as caught:
            read_crystal(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="span a volume"):
        make_crystal(np.zeros((3, 3)), [[0, 0, 0]], ["Na"], "flat")


def test_graph_file_is_checked_and_rebuilt(tmp_path: Path) -> None:
    sources = [row.source for row in demo_table(count=20).rows]
    settings = GraphSettings()
    built, cached = cached_graphs(sources, settings, cache_dir=tmp_path)
    assert not cached
    stored, cached = cached_graphs(sources, settings, cache_dir=tmp_path)
    assert cached
    for one, other in zip(built, stored, strict=True):
        for name in ("numbers", "source", "target", "vectors"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert not cached_graphs(sources[::-1], settings, cache_dir=tmp_path)[1]
    assert not cached_graphs(sources, GraphSettings(max_neighbors=6), cache_dir=tmp_path)[1]
    for file in tmp_path.glob("*.bin"):
        content = bytearray(file.read_bytes())
        content[-100] ^= 0xFF
        file.write_bytes(content)
        assert GraphStore.open(file) is None
    assert not cached_graphs(sources, settings, cache_dir=tmp_path)[1]
    (file,) = [f for f in tmp_path.glob("*.bin") if GraphStore.open(f) is not None]
    file.write_bytes(file.read_bytes()[:-64])
    assert GraphStore.open(file) is None


def test_workers_build_the_same_graphs_and_errors_keep_their_place(tmp_path: Path) -> None:
    sources: list = [row.source for row in demo_table(count=70).rows]
    sources[3] = tmp_path / "absent.cif"
    alone, parallel = build_graphs(sources, GraphSettings()), build_graphs(sources, GraphSettings(), workers=2)
    assert list(alone.errors) == list(parallel.errors) == [3]
    with pytest.raises(UserError, match="absent"):
        alone[3]
    for position in (0, 4, 69):
        np.testing.assert_array_equal(alone[position].vectors, parallel[position].vectors)
    np.testing.assert_array_equal(alone.edge_counts, parallel.edge_counts)


def test_normaliser_effects_of_the_published_table() -> None:
    assert normalize_text("2.49 Å") == "2.49 A"
    assert normalize_text("₀₁₂₃₄₅₆₇₈₉") == "  234 678 "  # 0, 1, 5 and 9 are not in the table
    assert normalize_text("m² m³") == "m2 m3"
    assert normalize_text("a–b") == "a-b"
    assert normalize_text("90°") == "90°"
    assert normalize_text("plain ASCII ~!@ text.\nsecond line") == "plain ASCII ~!@ text.\nsecond line"


def test_sentence_levels() -> None:
    text = (
        "NaCl is Halite structured and crystallizes in the cubic Fm-3m space group. Na(1) is bonded to six equivalent "
        "Cl(1) atoms to form edge-sharing NaCl6 octahedra. All Na(1)-Cl(1) bond lengths are 2.82 Å."
    )
    assert keep_levels(text, ("global",)).endswith("space group.")
    assert keep_levels(text, ("global", "semi-global")).endswith("octahedra.")
    assert keep_levels(text, ("local",)).startswith("All Na(1)")


def test_describer_says_what_the_structure_is() -> None:
    text = describe(SALT)
    assert text.startswith("NaCl crystallizes")
    assert "Na(1) is bonded to 6 Cl atoms at 2.82 A." in text
    assert reduced_formula(["Sr", "Ti", "O", "O", "O"] * 2) == "SrTiO3"


@pytest.mark.slow
def test_robocrystallographer_describes_rock_salt() -> None:
    pytest.importorskip("robocrys")
    text = describe_with_robocrystallographer(SALT)
    assert text.startswith("NaCl is Halite")
    assert "Fm" in text
    assert "octahedra" in text
    assert "np." not in text


def test_table_reads_what_the_demo_writes(tmp_path: Path) -> None:
    write_crystal_demo(tmp_path, count=12, seed=3)
    table = read_table(tmp_path, "jarvis", "fe")
    want = demo_table(count=12, seed=3).rows
    assert [row.id for row in table.rows] == [row.id for row in want]
    np.testing.assert_allclose([row.target for row in table.rows], [row.target for row in want], atol=1e-5)
    graphs, _ = cached_graphs([row.source for row in table.rows], GraphSettings(), cache_dir=None)
    direct = build_graphs([row.source for row in want], GraphSettings())
    np.testing.assert_array_equal(graphs.edge_counts, direct.edge_counts)


def test_bad_rows_each_get_one_line(tmp_path: Path) -> None:
    write_crystal_demo(tmp_path, count=6)
    folder = tmp_path / "jarvis" / "formation_energy_peratom"
    lines = (folder / "description.csv").read_text().splitlines()

    def rewrite(row: int, line: str) -> None:
        (folder / "description.csv").write_text("\n".join([*lines[:row], line, *lines[row + 1 :]]) + "\n")

    rewrite(2, "demo-0001,X,na,text,f")
    table = read_table(tmp_path, "jarvis", "formation_energy")
    assert table.without_target == ["demo-0001"]
    assert "1 rows without a target" in table.report()
    rewrite(2, "demo-0001,X,abc,text,f")
    with pytest.raises(UserError, match=r"line 3: target 'abc' is not a number"):
        read_table(tmp_path, "jarvis", "formation_energy")
    rewrite(2, "demo-0001,X,1.0")
    with pytest.raises(UserError, match=r"line 3: expected 5 fields, found 3"):
        read_table(tmp_path, "jarvis", "formation_energy")
    (folder / "description.csv").write_bytes(("\n".join(lines) + "\ndemo-9,X,1.0,\u00c5,f\n").encode("latin-1"))
    with pytest.raises(UserError, match="not text in UTF-8"):
        read_table(tmp_path, "jarvis", "formation_energy")
    rewrite(2, lines[2])
    os.remove(folder / "cif" / "demo-0004.cif")
    with pytest.raises(UserError, match=r"1 structure files .* demo-0004.* on_error=skip"):
        read_table(tmp_path, "jarvis", "formation_energy")
    assert len(read_table(tmp_path, "jarvis", "formation_energy", on_error="skip").rows) == 5
    with pytest.raises(UserError, match=r"^property=gap: no folder .* it has bulk_modulus_kv, formation"):
        read_table(tmp_path, "jarvis", "gap")


def test_mp_layout_takes_logarithms(tmp_path: Path) -> None:
    folder = tmp_path / "mp_2018_small"
    (folder / "cif").mkdir(parents=True)
    for name in ("a", "b"):
        write_cif(folder / "cif" / f"{name}.cif", SALT)
    (folder / "description.csv").write_text("id,c,shear,bulk,text,file\na,NaCl,10,100,t,a\nb,NaCl,-1,1000,t,b\n")
    assert [row.target for row in read_table(tmp_path, "mp", "bulk").rows] == [2.0, 3.0]
    table = read_table(tmp_path, "mp", "shear_modulus")
    assert [row.target for row in table.rows] == [1.0]
    assert table.without_target == ["b"]


def test_published_split() -> None:
    import random

    order = list(range(940))
    random.Random(123).shuffle(order)
    split = random_split(940)
    assert split.train == order[:752]
    assert split.test == order[-94:]
    assert split.val == order[-188:-94]
    with pytest.raises(UserError, match="cannot be split"):
        random_split(5)
    with pytest.raises(UserError, match="add up"):
        random_split(100, val_ratio=0.2, test_ratio=0.2)
    assert [len(part) for part in vars(random_split(100, n_train=5, val_ratio=0.2)).values()] == [5, 20, 10]


def test_split_file(tmp_path: Path) -> None:
    rows = demo_table(count=6).rows
    ids = [row.id for row in rows]
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ids[2:], "val": ids[:1], "test": ids[1:2]}))
    split = split_from_file(path, rows)
    assert (split.train, split.val, split.test) == ([2, 3, 4, 5], [0], [1])
    path.write_text(json.dumps({"train": ids, "val": ids[:1], "test": ids[1:2]}))
    with pytest.raises(UserError, match="two parts"):
        split_from_file(path, rows)
