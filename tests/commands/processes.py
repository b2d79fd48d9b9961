"""`python` for the commands of the pages: flags of demo scale are added, and torch is loaded once for all of them.

A server with everything loaded forks for each command; arguments, folder, environment and the three streams are those
of the caller. What is no program of the repository is handed to the interpreter, and so is the queue of HDMAP, whose
children must be found by their names.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import runpy
import shlex
import signal
import socket
import sys
from array import array
from pathlib import Path
from typing import Any

import anomaly_lib
from tests.commands.scale import flags_of

CLIENT = """#!{python} -ISE
import json, os, signal, socket, sys
from array import array

argv = sys.argv[1:]
ours = argv[:2] == ["-m", "anomaly_lib"] or (argv and argv[0].endswith(".py") and os.path.isfile(argv[0]))
queue = argv and argv[0].endswith("run_conditions.py")
if not ours or queue:
    more = ["--conditions", os.environ["SMALL_CONDITIONS"]] if queue else []
    os.execv({python!r}, [{python!r}, *argv, *more])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps([argv, os.getcwd(), dict(os.environ)]).encode()
streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [0, 1, 2]))]
server.sendmsg([len(request).to_bytes(8, "little")], streams)
server.sendall(request)
child = int.from_bytes(server.recv(8), "little")
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(child, number))
sys.exit(int.from_bytes(server.recv(8), "little"))
"""
LOADED_LATE = ("matplotlib.pyplot", "timm", "open_clip", "transformers", "torchvision", "scipy.stats", "PIL.Image")
THREADED = {"anomaly_lib.evaluation.runner"}
"""Loads onnxruntime, whose thread does not survive a fork: a child would wait for it for ever when it ends."""


def write_client(path: Path, address: Path) -> None:
    """Write the program that stands in for python."""
    path.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    path.chmod(0o755)


def serve(address: str, python: str) -> None:
    """Fork for every request, for ever. `python`: what a command takes for the interpreter."""
    ours = {found.name for found in pkgutil.walk_packages(anomaly_lib.__path__, "anomaly_lib.")}
    for name in (*LOADED_LATE, *sorted(ours - THREADED)):
        with contextlib.suppress(ImportError):  # of a package that is not installed
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    while True:
        caller, _ = listener.accept()
        if os.fork():
            caller.close()
            continue
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        streams, (argv, folder, environment) = _request(caller)
        child = os.fork()
        if child == 0:
            caller.close()
            sys.executable = python
            _become(argv, folder, environment, streams)
        caller.sendall(child.to_bytes(8, "little"))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        caller.sendall((code if code >= 0 else 128 - code).to_bytes(8, "little"))
        os._exit(0)


def _request(caller: socket.socket) -> tuple[list[int], Any]:
    size, ancillary, _, _ = caller.recvmsg(8, socket.CMSG_SPACE(12))
    streams = array("i")
    streams.frombytes(ancillary[0][2])
    content = b""
    while len(content) < int.from_bytes(size, "little"):
        content += caller.recv(65536)
    return list(streams), json.loads(content)


def _become(argv: list[str], folder: str, environment: dict[str, str], streams: list[int]) -> None:
    """Run a command as a new interpreter would."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    argv = [*argv, *flags_of(argv), *shlex.split(environment.get("MORE", ""))]
    if argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        sys.path.insert(0, str(Path(argv[0]).resolve().parent))
        runpy.run_path(argv[0], run_name="__main__")
    sys.exit(0)


if __name__ == "__main__":
    serve(*sys.argv[1:])
