"""Notebooks of the repository: their code run from the first cell to the last, their kept outputs looked at."""

import json
import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
OF_A_MACHINE = re.compile(
    r"/(?:home|root|tmp|usr|work|opt|mnt|Users|private|var)/|[A-Z]:\\\\|https?://(?:localhost|\d+\.)"
)


def cells_of(name: str) -> list[dict[str, Any]]:
    """The cells of a notebook, which is valid and tells no path of the machine it was run on."""
    import nbformat

    text = (FOLDER / name).read_text(encoding="utf-8")
    nbformat.validate(nbformat.reads(text, as_version=4))
    found = OF_A_MACHINE.search(text)
    assert found is None, text[max(found.start() - 40, 0) : found.end() + 40]
    return list(json.loads(text)["cells"])


def run_notebook(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, changes: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run all code cells in one namespace, in `folder`, with texts replaced to make it small; the namespace."""
    code = "\n\n".join("".join(cell["source"]) for cell in cells_of(name) if cell["cell_type"] == "code")
    for old, new in (changes or {}).items():
        assert old in code
        code = code.replace(old, new)
    script = folder / "notebook.py"
    script.write_text(code, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    return runpy.run_path(str(script))
