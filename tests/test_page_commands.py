"""Every command that a page shows is one of a program here, with options that it has, in values that it takes."""

import re
import shlex
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from anomaly_lib import command_line
from tests.commands.pages import all_blocks, excuses
from tests.commands.scale import flags_of
from tests.support.programs import PREFIX, ROOT, Program, all_programs

STARTS = re.compile(
    r"^(?:\$ )?(?:\w+=\S+ )*(?:torchrun \S+ \S+ (?=\S+\.py)|(?:\S*/)?python |(?=anomaly-lib ))(.*)$", re.MULTILINE
)
SHELL = re.compile(r"\bbash (\S+\.sh)")
MISSING = re.compile(r"no such (file|folder)|matches nothing|needs the weights")  # what the reader has and we have not
ELSEWHERE = {excuse.begins for excuse in excuses()}
COMMANDS = [
    (block.page, line)
    for block in all_blocks()
    for line in STARTS.findall(block.text)
    if not line.startswith(("-m venv", "-m pytest", "-c "))
]


@pytest.fixture(scope="module")
def programs() -> dict[str, Program]:
    return all_programs()


def test_pages_show_commands() -> None:
    assert len(COMMANDS) > 60
    assert {page for page, _ in COMMANDS} >= {"README.md", "promptad.md", "sowa.md", "crystal.md", "hdmap.md"}


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}: {line[:60]}" for page, line in COMMANDS])
def test_options_are_known(
    page: str,
    line: str,
    programs: dict[str, Program],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(re.sub(r"[<>]", "", line.partition(" > ")[0]), comments=True)
    name, *argv = words
    added = flags_of(words)  # as tests/commands runs it
    if words[0] in ("-m", "anomaly-lib"):
        name, *argv = words[2 if words[0] == "-m" else 1 :]
        added = flags_of(["-m", "anomaly_lib", name, *argv])
        name = f"{PREFIX}train {argv.pop(0)}" if name == "train" else PREFIX + name
    assert name in programs, f"{page} shows {line}"
    parse = command_line.parse

    def only_parsed(*args: Any, **named: Any) -> None:
        parse(*args, **named)
        raise SystemExit(0)

    for asked in (argv, [*argv, *added]) if page not in ELSEWHERE else (argv,):
        with patch.object(command_line, "parse", only_parsed):
            code = programs[name].main(asked)
        said = capsys.readouterr().err
        assert code == 0 or MISSING.search(said), f"{page} shows {line}, with {asked}\n{said}"


def test_shell_scripts_are_there() -> None:
    shown = {path for block in all_blocks() for path in SHELL.findall(block.text)}
    assert len(shown) > 3
    assert not [path for path in shown if not (ROOT / path).is_file()]
