"""The generated pages of the documentation site, as a hook of mkdocs: README, notebooks, API, a card a detector.

`make docs` builds the site; nothing here is written into the repository.
"""

import ast
import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anomaly_lib.models.detectors.registry import ROOM, Entry, entries

ROOT = Path(__file__).resolve().parents[2]
MANUAL = ROOT / "docs" / "manual"
ROOMS = {
    "fitting": "A detector of your own images",
    "types": "What detectors answer",
    "models": "Networks",
    "metrics": "Metrics",
    "fusion": "Fusion of scores",
    "losses": "Losses",
    "ops": "Tensor functions",
    "backbones": "Frozen networks",
    "features": "The feature store",
    "data": "Data",
    "detect": "Detectors and decisions",
    "engine": "What a training loop calls",
    "evaluation": "Programs over detectors",
    "viz": "Figures",
    "config": "Options",
}
OWN_PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
TABLE = re.compile(r"(?:^\|.*\|[ ]?\n)+", re.MULTILINE)
Pages = dict[str, str]


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs: the generated pages beside those of docs/."""
    from mkdocs.structure.files import File

    for name, content in pages().items():
        files.append(File.generated(config, name, content=content))
    return files


def on_config(config: Any) -> Any:
    """Called by mkdocs: lists of generated pages take the place of their folder's name in the navigation."""
    generated = sorted(pages())

    def filled(nav: Any) -> Any:
        if isinstance(nav, list):
            return [filled(one) for one in nav]
        if isinstance(nav, dict):
            return {title: filled(inner) for title, inner in nav.items()}
        return [name for name in generated if name.startswith(nav)] if nav.endswith("/") else nav

    config.nav = filled(config.nav)
    return config


def pages() -> Pages:
    """Every generated page by its place in the site."""
    found: Pages = {}
    for name, place in OWN_PAGES.items():
        found[place] = linked((ROOT / name).read_text(encoding="utf-8"))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        found |= notebook_pages(path)
    for room, title in ROOMS.items():
        found[f"api/{room}.md"] = api_page(room, title)
    for entry in entries():
        found[f"cards/{entry.name}.md"] = card(entry)
    return found


def linked(text: str) -> str:
    """A page of the repository's root as a page of the site."""
    for name, place in OWN_PAGES.items():
        text = text.replace(f"]({name})", f"]({place})")
    return text.replace("](docs/", "](")


def api_page(room: str, title: str) -> str:
    """Every public module of a room with what it documents."""
    here = ROOT / "anomaly_lib"
    paths = sorted((here / room).rglob("*.py")) if (here / room).is_dir() else [here / f"{room}.py"]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    shown = [name for name in names if not any(part.startswith("_") for part in name.split("."))]
    blocks = [f"::: {name}\n    options: {{show_submodules: false, members_order: source}}\n" for name in shown]
    return f"# {title}\n\n`anomaly_lib.{room}`\n\n" + "\n".join(blocks)


# -- notebooks ------------------------------------------------------------------------------------------------------


def notebook_pages(path: Path) -> Pages:
    """A notebook as a page: its texts, code and kept outputs, pictures inline."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = [part for cell in cells for part in cell_parts(cell)]
    return {f"notebooks/{path.stem}.md": "\n\n".join(parts) + "\n"}


def cell_parts(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        text = "".join(output.get("text", data.get("text/plain", "")))
        if "image/png" in data:
            picture = base64.b64encode(base64.b64decode("".join(data["image/png"]))).decode()
            yield f'<img alt="output" src="data:image/png;base64,{picture}">'
        elif "text/html" in data:
            yield "<div>\n" + re.sub(r"\n\s*\n", "\n", "".join(data["text/html"])) + "\n</div>"
        elif text.strip():
            yield f"```text\n{text.rstrip()}\n```"


# -- cards ----------------------------------------------------------------------------------------------------------


def card(entry: Entry) -> str:
    """What a detector is, when to use it, what it costs, what was published and measured."""
    command = f"```bash\nanomaly-lib fit parts/ --model {entry.name}\n```"
    lines = [f"# {entry.name}", "", about(entry), "", command, ""]
    lines += [f"- {fact}" for fact in facts(entry)]
    if entry.published:
        lines += ["", "## As published", "", "| option | value |", "| --- | --- |"]
        lines += [f"| `{name}` | `{value}` |" for name, value in entry.published.items()]
    lines += ["", "## When to use it, what it costs, what was measured", ""]
    rows = list(rows_about(entry.name))
    for page, heading, table in rows:
        lines += [f"From [{heading}](../manual/{page}):", "", table, ""]
    return "\n".join(lines if rows else lines[:-2]) + "\n"


def about(entry: Entry) -> str:
    """The docstring of the detector's class, read without importing it."""
    file, _, name = str(entry.module).partition(":")
    path = ROOT.joinpath(*ROOM.split("."), *file.split(".")).with_suffix(".py")
    classes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef)]
    found = next((ast.get_docstring(node) for node in classes if node.name == name), None)
    return found or (entry.config.__doc__ or "").strip()


def facts(entry: Entry) -> Iterator[str]:
    yield "reads a frozen network, whose features are kept" if entry.frozen else "brings its own network"
    yield "trained in epochs" if entry.trained else "fitted in one pass"
    if entry.transductive:
        yield "a score depends on the images scored with it: no false-alarm rate is promised"
    else:
        judged = "each normal image is judged by all the others"
        yield f"decision: {judged if entry.leaves_out else 'some normal images are kept from it'}"


def rows_about(model: str) -> Iterator[tuple[str, str, str]]:
    """(page, heading, table) of every row of the manual that begins with this detector's name."""
    named = re.compile(rf"^\|\s*(?:\*\*)?\[?`?{model}`?[\]|*\s(]", re.IGNORECASE)
    for path in sorted(MANUAL.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        for table in TABLE.finditer(text):
            head, rule, *rows = table[0].strip().split("\n")
            chosen = [row for row in rows if named.match(row)]
            if chosen and "---" in rule:
                before = re.findall(r"^#+ (.+)$", text[: table.start()], re.MULTILINE)
                local = re.sub(r"\]\(#", f"](../manual/{path.name}#", "\n".join([head, rule, *chosen]))
                yield path.name, before[-1] if before else path.stem, local
