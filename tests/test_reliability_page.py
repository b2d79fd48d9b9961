"""The tests that docs/manual/reliability.md names are there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "manual" / "reliability.md"


def test_every_test_that_is_named_exists() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    named, path = [], ""
    for word in re.findall(r"`((?:tests/[\w/]+\.py)?(?:::\w+)?)`", "\n".join(lines)):
        path = word.partition("::")[0] or path  # a name alone is one of the file before it
        named.append((path, word.partition("::")[2]))
    assert len(named) > 40
    absent = [(path, name) for path, name in named if f"def {name}" not in (ROOT / path).read_text(encoding="utf-8")]
    assert absent == []
