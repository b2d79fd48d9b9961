"""python -m anomaly_lib serve: detectors behind an address, until a signal comes."""

import gc
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly_lib.command_line import PROGRAM
from anomaly_lib.detect.decision import CALIBRATE, at_asked_rate
from anomaly_lib.detect.images import ImageDetector
from anomaly_lib.errors import UserError, reason_of
from anomaly_lib.evaluation.checkpoints import PREFERRED, find_checkpoints
from anomaly_lib.interrupt import handled_by
from anomaly_lib.serving.options import ServeArgs
from anomaly_lib.serving.records import Records
from anomaly_lib.serving.service import Service
from anomaly_lib.systems.registry import Registry

if TYPE_CHECKING:
    from anomaly_lib.serving.app import Server

ANSWER_SECONDS = 2  # that open requests have once a signal has come
Say = Callable[[str], object]


def serve(args: ServeArgs, systems: Registry, say: Say) -> int:
    """Load the detectors, answer requests, and end within five seconds of SIGINT or SIGTERM."""
    if not args.checkpoint:
        raise UserError(f"usage: {PROGRAM} serve FILE|RUN ... [--port 8000]")
    try:
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401

        from anomaly_lib.serving.app import Server
    except ImportError as error:
        raise UserError(f'serve needs {error.name}: pip install "anomaly_lib[serve]"') from None
    with listening(args) as (listener, address), closing(Records(Path(args.output_dir))) as records:
        services = open_services(args, systems, say)
        server = Server(services, records, args)
        for line in opening(args, services, address):
            say(line)
        sys.stdout.flush()
        why = run(server, listener)
        images = sum(server.metrics.images.values())
        say(f"{why}; {images} images scored; the history and marked images lie in {args.output_dir}")
        ended = [service.close(1.0) for service in services.values()]
    if not all(ended) and threading.current_thread() is threading.main_thread():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # a batch is being scored still: the interpreter would wait for it
    gc.freeze()  # or it would search all of torch for garbage before it ends, for seconds
    return 0


@contextmanager
def listening(args: ServeArgs) -> Iterator[tuple[socket.socket, str]]:
    """The socket, bound before anything is loaded, and the server's address."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(args.host, args.port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"host={args.host}: {reason_of(error)}; give an address of this machine") from None
    # Named TCP, or asyncio does not switch Nagle's algorithm off: every answer would wait 40 ms for an acknowledgement.
    with socket.socket(family, kind, protocol) as listener:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(place)
            listener.listen(256)
        except OSError as error:
            raise UserError(f"port={args.port}: {error.strerror} at {args.host}; give another port=") from None
        host = f"[{args.host}]" if ":" in args.host else args.host
        yield listener, f"http://{host}:{listener.getsockname()[1]}"


def open_services(args: ServeArgs, systems: Registry, say: Say) -> dict[str, Service]:
    """A service for each checkpoint, by a name of its own."""
    paths = list(dict.fromkeys(path for text in args.checkpoint for path in find_checkpoints(text)))
    services = {}
    for name, path in zip(names_of(paths), paths, strict=True):
        detector = systems.load(path, device=args.device, weights=args.weights)
        if not isinstance(detector, ImageDetector):
            raise UserError(f"{path}: {detector.system} is no image system; serve scores images only")
        detector = detector if args.obj is None else detector.of_class(args.obj)
        if detector.transductive:
            raise UserError(f"{path}: scores images by one another, so it cannot answer one by one; use predict")
        decision = detector.decision = at_asked_rate(detector.decision, args.false_alarms)
        said = f"no decision, only scores: {detector.undecided}; {CALIBRATE} adds one"
        say(f"{name}: {said if decision is None else decision.describe()}")
        short = [] if decision is None or args.false_alarms is None else decision.short_of(args.false_alarms)
        for line in [*detector.facts.remarks(), *short]:
            say(f"{name}: {line}")
        services[name] = Service(
            name, detector, batch_size=args.batch_size, queue=args.queue, most_pixels=args.megapixels * 1_000_000
        )
    return services


def names_of(paths: Sequence[Path]) -> list[str]:
    """What detectors are called: as their files, or as the run folders of files that are called as all are."""
    names: list[str] = []
    for path in paths:
        text = path.resolve().parent.name if path.name in PREFERRED else path.stem
        name = re.sub(r"[^\w.-]+", "-", text).strip("-.") or "detector"
        number = 2
        while name in names:
            name = f"{re.sub(r'-[0-9]+$', '', name) if number > 2 else name}-{number}"
            number += 1
        names.append(name)
    return names


def opening(args: ServeArgs, services: dict[str, Service], address: str) -> Iterator[str]:
    """What is served where."""
    token = "" if args.token is None else "-H 'Authorization: Bearer TOKEN' "
    yield f"{', '.join(services)} at {address}/ (stop with Ctrl+C)"
    yield f"try: curl {token}-F file=@part.png {address}/predict"
    yield (
        f"limits: {args.upload_mib} MiB a request, {args.megapixels} megapixels an image, {args.queue} images waiting; "
        f"batches of up to {args.batch_size}"
    )


def run(server: "Server", listener: socket.socket) -> str:
    """Answer requests until a signal comes, or nobody has asked for as long as was allowed; why it ended."""
    import uvicorn

    allowed, why = server.args.idle_seconds, "stopped"

    async def look_around() -> None:
        nonlocal why
        busy = any(service.waiting for service in server.services.values())
        if allowed and not busy and time.monotonic() - server.metrics.last > allowed:
            why, running.should_exit = f"nobody asked for {allowed:g} s", True

    class Running(uvicorn.Server):
        """Signals end it, and nothing is raised afterwards."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            with handled_by(self.handle_exit):
                yield

    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the guard logs what fails
    running = Running(
        uvicorn.Config(
            server.app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
            timeout_graceful_shutdown=ANSWER_SECONDS, callback_notify=look_around, timeout_notify=0,
        )
    )  # fmt: skip
    server.stop = lambda: setattr(running, "should_exit", True)
    running.run(sockets=[listener])
    return why
