"""The shell's completion, asked as the shell asks: bash's own completion function, and zsh where there is one."""

import shutil
import subprocess
from pathlib import Path

import pytest

from anomaly_lib.__main__ import main
from anomaly_lib.commands.table import COMMANDS
from anomaly_lib.commands.training import TRAINERS
from anomaly_lib.models.detectors.registry import names

CASES = {
    "": {*COMMANDS, "train"},
    "tra": {"train"},
    "train ": set(TRAINERS),
    "train prom": {"promptad-cls", "promptad-seg"},
    "fit --mod": {"--model"},
    "fit --model ": {*names(), "promptad", "sowa"},
    "fit parts --model=win": {"winclip"},
    "fit parts --fresh ": {"True", "False"},
    "fit --coreset": {"--coreset-ratio", "--coreset-size"},
    "fit --model padim --coreset": set(),
    "fit --model sowa --ablate": {"--ablate-stages"},
    "train promptad-cls --fusion-mode har": {"harmonic", "harmonic-mean"},
    "check vid": {"video_ae"},
    "cache ": {"info", "clear"},
    "fit --data-path ": set(),  # a file or folder: the shell's own
    "predict ": set(),
}
ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_anomaly_lib
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from contextlib import redirect_stdout

    found = {}
    for shell in ("bash", "zsh"):
        found[shell] = tmp_path_factory.mktemp("completion") / shell
        with found[shell].open("w", encoding="utf-8") as stream, redirect_stdout(stream):
            assert main(["completion", shell]) == 0
    return found


def as_bash_splits(line: str) -> list[str]:
    """Words of a line; bash makes a word of its own of each "="."""
    return ["anomaly-lib", *line.replace("=", " = ").split(" ")]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("line", CASES)
def test_bash(line: str, scripts: dict[str, Path]) -> None:
    done = subprocess.run(
        ["bash", "--norc", "-c", ASK, "ask", str(scripts["bash"]), *as_bash_splits(line)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert set(done.stdout.split()) == CASES[line]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
@pytest.mark.parametrize("line", [line for line in CASES if "=" not in line])
def test_zsh(line: str, scripts: dict[str, Path]) -> None:
    code = (
        'compdef() { }; compadd() { print -l -- $found }; _files() { }; source "$1"; shift; words=("$@"); '
        "CURRENT=$#; _anomaly_lib"
    )
    done = subprocess.run(
        ["zsh", "-f", "-c", code, "ask", str(scripts["zsh"]), *as_bash_splits(line)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    start = line.rpartition(" ")[2]
    assert {word for word in done.stdout.split() if word.startswith(start)} == CASES[line]
