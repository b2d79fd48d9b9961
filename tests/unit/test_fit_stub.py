"""What an editor knows of `anomaly_lib.fit` is what its models take."""

import ast
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import anomaly_lib
from scripts.pages import fit_stub

GOOD = """
import anomaly_lib
detector = anomaly_lib.fit("padim", "parts/", image_size=64, device="cpu")
result = detector.predict("new.png")
other = anomaly_lib.fit("mine", "parts/", plugin="mine.py", bins=3)
"""
WRONG = {
    'anomaly_lib.fit("padim", "parts/", shott=4)': "shott",
    'anomaly_lib.fit("padim", "parts/", shot="four")': "shot",
    'anomaly_lib.fit("padim", "parts/", precision="fp8")': "precision",
    'anomaly_lib.fit("padimm", "parts/")': "fit",
}


def declared() -> dict[str, set[str]]:
    """Class of options in the file -> its names, inherited ones included."""
    tree = ast.parse(fit_stub.PATH.read_text(encoding="utf-8"))
    own = {
        node.name: {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    bases = {node.name: node.bases[0].id for node in tree.body if isinstance(node, ast.ClassDef)}
    frozen = own["_Shared"] | own["_Frozen"]
    return {name: names | (frozen if bases[name] == "_Frozen" else own["_Shared"]) for name, names in own.items()}


def test_options_are_those_of_each_model() -> None:
    for model, cls in fit_stub.options_of_models().items():
        wanted = {f.name for f in fields(cls)} - set(fit_stub.NOT_HERE)
        assert declared()[fit_stub.class_name(model)] == wanted, model


def test_the_file_is_as_written_today(tmp_path: Path) -> None:
    """After a wanted change: python scripts/make_figures.py --only stub && ruff format anomaly_lib/__init__.pyi"""
    again = tmp_path / "__init__.pyi"
    again.write_text(fit_stub.stub(), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "ruff", "format", "-q", "--line-length", "120", str(again)], check=True)
    assert again.read_text(encoding="utf-8") == fit_stub.PATH.read_text(encoding="utf-8")


def test_names_are_those_of_the_package() -> None:
    for name in anomaly_lib.__all__:
        assert name in fit_stub.HEAD + fit_stub.LAST


@pytest.mark.slow
def test_a_type_checker_sees_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "use.py"
    file.write_text(GOOD + "\n".join(WRONG) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--no-incremental", "--follow-imports=silent", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=fit_stub.PATH.parents[1])
    lines = {int(line.split(":")[1]) for line in done.stdout.splitlines() if "error:" in line}
    first = GOOD.count("\n") + 1
    assert lines == set(range(first, first + len(WRONG))), done.stdout
