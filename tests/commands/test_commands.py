"""Every command of the user's five documents and of every page runs, from a scratch folder, as it is printed.

The documents' commands are those of docs/manual/commands.md. Only sizes are others (`scale.py`); paths that the reader
has are made (`world.py`). What is not run is in the table at the end of that page, with the reason.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.commands.pages import LEAVES, LIST, PAGES, ROOT, Block, all_blocks, excuses, runnable
from tests.commands.processes import write_client
from tests.commands.scale import flags_of
from tests.commands.world import World

EXCUSED = excuses()
RUNNABLE = [(block, script) for block in all_blocks() if (script := runnable(block, EXCUSED))]

# Ends only what works in the scratch folders: the same experiments may run elsewhere on this machine.
PKILL = """code=1
for process in $(pgrep "$@"); do
  [ $process = $$ ] && continue
  case "$(readlink /proc/$process/cwd)" in {root}/*) kill $process && code=0 ;; esac
done
exit $code"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Scratch folders, one a page, and the server that runs their commands."""
    root = tmp_path_factory.mktemp("commands")
    address, binaries = root / "server", root / "bin"
    binaries.mkdir()
    write_client(binaries / "python", address)
    detector = " ".join(flags_of(["train_detector.py", "--model", "reverse_distillation"]))
    for name, commands in (
        ("anomaly-lib", 'exec python -m anomaly_lib "$@"'),
        ("pkill", PKILL.format(root=root)),
        ("torchrun", f'exec {sys.executable} -m torch.distributed.run "$@" {detector}'),
    ):
        (binaries / name).write_text(f"#!/bin/sh\n{commands}\n")
        (binaries / name).chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.commands.processes", str(address), str(binaries / "python")],
        cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    try:
        while not address.exists():
            assert server.poll() is None
            time.sleep(0.1)
        yield World(root, binaries)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow
@pytest.mark.parametrize(("block", "script"), RUNNABLE, ids=[f"{block.page}: {block.name}" for block, _ in RUNNABLE])
def test_commands_run(block: Block, script: str, world: World) -> None:
    folder = world.folder(block.page, script)
    said = world.run(script, folder)
    for names in LEAVES.findall(block.text):
        for name in names.split():
            assert list(folder.glob(name)), f"{name} is missing\n{said[-3000:]}"


def test_every_excuse_is_needed_and_names_what_runs_instead() -> None:
    lines = [line for block in all_blocks() for line in block.lines()]
    pages = {page.name for page in PAGES}
    assert len(EXCUSED) > 5
    for one in EXCUSED:
        assert one.begins in pages or any(line.startswith(one.begins) for line in lines), one
        for word in one.instead.split("`")[1::2]:
            assert not word.startswith("tests/") or (ROOT / word.partition("::")[0]).is_file(), one


def test_the_five_documents_are_there() -> None:
    text = LIST.read_text(encoding="utf-8")
    assert [f"## {number:03d} " in text for number in range(5)] == [True] * 5
    assert sum(block.page == LIST.name for block, _ in RUNNABLE) >= 30
