"""What the pages show: their blocks of shell commands, and those that a test cannot run."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIST = ROOT / "docs" / "manual" / "commands.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "manual").glob("*.md"))]
BLOCK = re.compile(r"^```(bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LEAVES = re.compile(r"#.*\bleaves (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """Shell commands that stand together on a page."""

    page: str
    name: str  # what stands in its first line as a comment, or that line's number
    text: str  # continued lines are one line

    def lines(self) -> list[str]:
        return self.text.splitlines()


@dataclass(frozen=True)
class Excuse:
    """A command, or a page, that is run elsewhere or not at all."""

    begins: str
    why: str
    instead: str


def blocks_of(page: Path) -> list[Block]:
    """The blocks of one page, of a console session what is typed there."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in BLOCK.finditer(text):
        content = match[2].replace("\\\n", " ")
        if match[1] == "console":
            content = "\n".join(line[2:] for line in content.splitlines() if line.startswith("$ "))
        first = content.partition("\n")[0]
        number = text[: match.start()].count("\n") + 2
        found.append(Block(page.name, first[2:] if first.startswith("# ") else f"line {number}", content))
    return found


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page)]


def excuses() -> list[Excuse]:
    """The table at the end of the list of commands."""
    _, _, table = LIST.read_text(encoding="utf-8").partition("## Not run as they stand")
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \|$", table, re.MULTILINE)
    return [Excuse(*row) for row in rows]


def runnable(block: Block, excused: list[Excuse]) -> str:
    """The script that a test runs: without what is excused, ``<NAME>`` being NAME."""
    if any(one.begins == block.page for one in excused):
        return ""
    kept = [line for line in block.lines() if not any(line.startswith(one.begins) for one in excused)]
    if not any(line.strip() and not line.startswith("#") for line in kept):
        return ""
    return re.sub(r"<(\w+)>", r"\1", "\n".join(kept)) + "\n"
