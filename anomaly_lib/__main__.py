"""The command `anomaly-lib`, which is also `python -m anomaly_lib`: from a folder of pictures to decisions."""

import difflib
import sys

from anomaly_lib.command_line import PROGRAM
from anomaly_lib.commands.table import COMMANDS, summary_of
from anomaly_lib.commands.training import TRAINERS, train_main
from anomaly_lib.models.detectors.registry import names

FIRST_STEPS = f"""{__doc__.splitlines()[0]}

First steps
  {PROGRAM} demo parts                          pictures to try it with
  {PROGRAM} fit parts/capsule --backbone demo-clip
  {PROGRAM} report RUN                          RUN: the folder that fit has named
  {PROGRAM} predict NEW.png --checkpoint RUN

Your own pictures: a folder with good/ and bad/ in it (or train/good, test/good, test/bad), or nothing but good ones.

Commands (each takes --help)
"""


def overview() -> str:
    """What a user sees who gives no command."""
    listed = [f"  {name:<14} {summary_of(name)}\n" for name in COMMANDS]
    systems = "".join(f"    {name:<12} {what}\n" for name, (_, what) in TRAINERS.items())
    return (
        FIRST_STEPS + "".join(listed) + f"  train NAME     Train a published system; each has data built in\n{systems}"
    )


def mistaken(what: str, word: str, known: list[str]) -> int:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    remedy = f"; did you mean {close[0]}?" if close else ""
    if word in names():
        remedy = f"; it is a model: {PROGRAM} fit FOLDER --model {word}"
    sys.stderr.write(f"{PROGRAM}: unknown {what} {word!r}; there are {', '.join(known)}{remedy}\n")
    return 2


def main(argv: list[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] == "train" and words[1:] and words[1] not in ("-h", "--help"):
        known = words[1] in TRAINERS
        return train_main(words[1], words[2:]) if known else mistaken("system", words[1], list(TRAINERS))
    if not words or words[0] in ("-h", "--help", "train"):
        sys.stdout.write(overview())
        return 0
    if words[0] == "--version":
        from anomaly_lib import __version__

        sys.stdout.write(f"anomaly_lib {__version__}\n")
        return 0
    if words[0] not in COMMANDS:
        return mistaken("command", words[0], [*COMMANDS, "train"])
    return COMMANDS[words[0]].run(words[0], words[1:])


if __name__ == "__main__":
    sys.exit(main())
