"""A terminal session as a moving SVG: real commands, their real output, waits cut short.

The commands run in an empty folder, on parts drawn for it. Nothing is written by hand but the commands.
"""

import html
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly_lib.errors import UserError
from anomaly_lib.files import write_text

ROOT = Path(__file__).resolve().parents[2]
SHOWN = "anomaly-lib"  # how the command is called once it is installed
COMMANDS = (
    "demo parts",
    "fit parts/brushed_metal --model fewshot --shot 16 --backbone demo-clip --output-dir metal",
    "predict --checkpoint metal/checkpoint.pt parts/brushed_metal/test/scratch --out found",
    "report --checkpoint metal/checkpoint.pt --report page | tail -2",
)
TYPED, LONGEST_WAIT, PAUSE = 24.0, 1.2, 0.9  # characters a second; seconds
COLUMNS, ROWS, LINE, CHARACTER = 104, 24, 19, 7.83  # of the terminal; pixels
BUTTONS = ("#ff5f57", "#febc2e", "#28c840")
STYLE = """text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:#d7dce2;white-space:pre}
.c{fill:#7bd88f}.l{opacity:0;animation:show %(total).2fs linear infinite}"""


@dataclass
class Line:
    """A line of the terminal and the second from which on it stands there."""

    text: str
    at: float
    typed: bool = False


def record(folder: Path) -> list[Line]:
    """Run the commands and note each line with its time; a wait is cut to `LONGEST_WAIT`."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": str(COLUMNS), "PYTHONUNBUFFERED": "1"}
    lines: list[Line] = []
    clock = 0.5
    for words in COMMANDS:
        lines.append(Line(f"$ {SHOWN} {words}", clock, typed=True))
        clock += (len(words) + len(SHOWN)) / TYPED
        with subprocess.Popen(
            ["bash", "-c", f'set -o pipefail; "$0" -m anomaly_lib {words}', sys.executable],
            cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            before = time.monotonic()
            for text in process.stdout:
                now = time.monotonic()
                clock += min(now - before, LONGEST_WAIT)
                before = now
                if "a second, " not in text:  # progress, which a terminal draws over
                    lines += [Line(part, clock) for part in wrapped(text.rstrip("\n").replace(f"{folder}/", ""))]
        if process.returncode:
            raise UserError(f"{words}: exit code {process.returncode}: {lines[-1].text}")
        clock += PAUSE
    return lines


def wrapped(text: str) -> list[str]:
    """As a terminal of `COLUMNS` breaks it."""
    return [text[start : start + COLUMNS] for start in range(0, max(len(text), 1), COLUMNS)]


def drawn(lines: Sequence[Line]) -> str:
    """The SVG. Lines appear at their seconds; when the terminal is full all of them move up."""
    total = lines[-1].at + 3
    frames, texts = [], []
    for number, line in enumerate(lines):
        share = 100 * line.at / total
        frames.append(f"@keyframes a{number}{{0%,{share:.2f}%{{opacity:0}}{share + 0.01:.2f}%,100%{{opacity:1}}}}")
        kind = "l c" if line.typed else "l"
        style = f'style="animation-name:a{number}"'
        texts.append(f'<text class="{kind}" {style} x="14" y="{(number + 1) * LINE}">{html.escape(line.text)}</text>')
    moves, up = ["0%{transform:none}"], 0
    for at in sorted({line.at for line in lines}):
        there = max(0, sum(line.at <= at for line in lines) - ROWS) * LINE
        if there > up:
            share = 100 * at / total
            moves.append(
                f"{share:.2f}%{{transform:translateY(-{up}px)}}{share + 0.01:.2f}%{{transform:translateY(-{there}px)}}"
            )
            up = there
    moves.append(f"100%{{transform:translateY(-{up}px)}}")
    width, height = round(COLUMNS * CHARACTER + 28), 44 + ROWS * LINE + 14
    scroll = f"@keyframes up{{{''.join(moves)}}}g{{animation:up {total:.2f}s linear infinite}}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
            f"<title>From a folder of parts to a report: {len(COMMANDS)} commands</title>",
            f"<style>{STYLE % {'total': total}}{scroll}{''.join(frames)}</style>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#16191d"/>',
            *(f'<circle cx="{18 + 18 * i}" cy="17" r="5.5" fill="{colour}"/>' for i, colour in enumerate(BUTTONS)),
            f'<svg y="32" height="{height - 40}"><g>',
            *texts,
            "</g></svg></svg>\n",
        ]
    )


def make_cast(folder: Path) -> Path:
    """Run the commands and write what they said."""
    with tempfile.TemporaryDirectory() as place:
        lines = record(Path(place))
    path = folder / "cast.svg"
    write_text(path, drawn(lines))
    return path
