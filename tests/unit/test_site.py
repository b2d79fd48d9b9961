"""The documentation site: its generated pages, links that lead somewhere, and (slow) the strict build."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from anomaly_lib.models.detectors.registry import names
from scripts.pages.site import ROOMS, ROOT, pages

DOCS = ROOT / "docs"
LINK = re.compile(r"(?<!!)\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def anchors_of(text: str) -> set[str]:
    """The addresses of a page's headings, as mkdocs makes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)).strip().lower() for title in titles]
    return {re.sub(r"[-\s]+", "-", title) for title in plain}


def every_page() -> dict[str, str]:
    own = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")}
    return own | pages()


def test_each_detector_has_a_card_and_each_room_a_page() -> None:
    found = pages()
    packaged = [name for name in names() if f"cards/{name}.md" in found]
    assert {"fewshot", "padim", "patchcore", "musc"} <= set(packaged)
    assert "DINOv2" in found["cards/fewshot.md"]  # the row of the family's page that says when to choose it
    assert "no false-alarm rate is promised" in found["cards/musc.md"]
    assert "| `backbone` | `resnet18` |" in found["cards/padim.md"]
    assert "::: anomaly_lib.metrics" in found["api/metrics.md"]
    assert {f"api/{room}.md" for room in ROOMS} <= set(found)
    assert "notebooks/promptad.md" in found


def test_every_page_of_the_manual_is_in_the_navigation() -> None:
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert not [path.name for path in DOCS.glob("manual/*.md") if f"- manual/{path.name}\n" not in listed]


def test_links_lead_somewhere() -> None:
    texts = every_page()
    lost = []
    for page, text in texts.items():
        for target, anchor in LINK.findall(CODE.sub("", text)):
            place = os.path.normpath(os.path.join(os.path.dirname(page), target)) if target else page
            there = place in texts or (DOCS / place).exists()
            if not there or (anchor and place in texts and anchor not in anchors_of(texts[place])):
                lost.append(f"{page}: {target}#{anchor}")
    assert not lost


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="pip install -e '.[docs]'")
def test_strict_build(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "cards" / "fewshot" / "index.html").is_file()
