"""Stop a program with SIGTERM in the middle of each of its phases, start it again, and run it once undisturbed.

    python tests/support/stopping.py PROGRAM.py OPTIONS.json FOLDER PHASE=CALL:MODULE:FUNCTION ...

PHASE is reached when FUNCTION of MODULE is called for the CALL-th time, counted from 1: it then waits, as a long
computation would, and the signal is sent. Runs lie in FOLDER/straight and FOLDER/PHASE; what happened is printed as
JSON. Imports are paid once: every run is a fork of this process, which itself runs no tensor code.
"""

import importlib
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.killing import load

LONGEST = 900.0  # seconds until a phase must have begun, and a run have ended


def wait_in(call: int, module: str, function: str, marker: Path) -> None:
    """Make the function touch `marker` and wait at its `call`-th call."""
    owner = importlib.import_module(module)
    *path, name = function.split(".")
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), itertools.count(1)

    def waiting(*args, **options):  # type: ignore[no-untyped-def]
        if next(calls) == call:
            marker.touch()
            deadline = time.monotonic() + LONGEST
            while time.monotonic() < deadline:
                time.sleep(0.01)
        return original(*args, **options)

    setattr(owner, name, waiting)


def start(main, argv: list[str], said: Path, place: tuple | None = None) -> int:  # type: ignore[no-untyped-def, type-arg]
    """Fork a run of the program; what it says goes to the file `said`."""
    child = os.fork()
    if child:
        return child
    stream = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    if place is not None:
        wait_in(*place)
    sys.exit(main(argv))  # as the program does: what the interpreter does at its end is part of stopping


def end_of(child: int, seconds: float = LONGEST) -> tuple[int | None, float]:
    """The exit code of a run, None when it had to be killed, and the CPU seconds of its life."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None, seconds


def cpu_seconds(process: int) -> float:
    """What a running process has computed so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stop_and_go_on(main, argv: list[str], run: Path, place: tuple) -> dict:  # type: ignore[no-untyped-def, type-arg]
    """Stop the run in its phase, then let the same command go on."""
    marker, said = run.with_suffix(".marker"), run.with_suffix(".txt")
    child = start(main, argv, said, (*place, marker))
    deadline = time.monotonic() + LONGEST
    while not marker.exists() and time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            sys.exit(f"{run.name}: ended with {os.waitstatus_to_exitcode(status)} before it\n{said.read_text()}")
        time.sleep(0.005)
    before = cpu_seconds(child)
    os.kill(child, signal.SIGTERM)
    code, seconds = end_of(child)
    seconds -= before  # its own, so that a busy machine does not count
    records = [json.loads(path.read_text())["status"] for path in run.rglob("run.json")]
    found = {"code": code, "seconds": seconds, "status": records, "said": said.read_text()[-500:]}
    again, _ = end_of(start(main, argv, said))
    return found | {"again": again, "said_again": said.read_text()[-2000:]}


if __name__ == "__main__":
    program, options, folder, *phases = sys.argv[1:]
    main, root = load(program).main, Path(folder)

    def argv_of(name: str) -> list[str]:
        words = ["--config", options, "--output-dir", str(root / name)]
        if json.loads(Path(options).read_text()).get("cache") in ("auto", "disk"):
            words += ["--cache-dir", str(root / f"{name}_cache")]
        return words

    places = {}
    for phase in phases:
        name, _, place = phase.partition("=")
        call, module, function = place.split(":")
        importlib.import_module(module)
        places[name] = (int(call), module, function)
    report = {"straight": {"code": end_of(start(main, argv_of("straight"), root / "straight.txt"))[0]}}
    for name, place in places.items():
        report[name] = stop_and_go_on(main, argv_of(name), root / name, place)
    print(json.dumps(report))
