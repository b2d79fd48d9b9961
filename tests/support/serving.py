"""A server in this process, and stand-ins for what it is made of."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from anomaly_lib.data.transforms import ImageTransform
from anomaly_lib.detect.contract import Facts
from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.images import ImageDetector
from anomaly_lib.errors import UserError
from anomaly_lib.serving.app import Server
from anomaly_lib.serving.options import ServeArgs
from anomaly_lib.serving.records import Records
from anomaly_lib.serving.run import listening, run
from anomaly_lib.serving.service import Service
from anomaly_lib.types import Prediction


class Brightness(ImageDetector):
    """Its score is the mean brightness of a picture, 0 to 1; anomalous from `threshold` on.

    A `picky` one refuses a picture of one row, and breaks at one of a single column. `hold` stops it until it is set.
    """

    system = "brightness"
    honours = frozenset()

    def __init__(self, threshold: float | None = 0.5, *, map_threshold: float | None = 0.9, picky: bool = True) -> None:
        self.transform = ImageTransform(size=(8, 8), resize="stretch", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.device, self.facts = torch.device("cpu"), Facts(notes=["a stand-in of the tests"])
        normal = tuple(number / 40 for number in range(19))
        if threshold is not None:
            self.decision = Decision(threshold, "by hand", normal, false_alarms=0.05, map_threshold=map_threshold)
        self.batches: list[int] = []
        self.picky = picky
        self.hold = threading.Event()
        self.hold.set()

    def _items(self, choice: Any) -> Any:
        raise NotImplementedError

    def _score(self, selection: Any) -> Any:
        raise NotImplementedError

    def predict_pictures(self, pictures: Sequence[np.ndarray]) -> Prediction:
        assert self.hold.wait(20)
        self.batches.append(len(pictures))
        for pixels in pictures if self.picky else ():
            if pixels.shape[0] == 1:
                raise UserError("a picture of one row")
            if pixels.shape[1] == 1:
                raise RuntimeError("a picture of one column")
        return super().predict_pictures(pictures)

    def predict_batch(self, images: torch.Tensor) -> Prediction:
        maps = images.mean(1)
        return Prediction(maps.mean((1, 2)), maps)


def picture(level: int, size: tuple[int, int] = (12, 10), suffix: str = "PNG") -> bytes:
    """An image file of one grey, [width, height]."""
    out = BytesIO()
    Image.new("RGB", size, (level, level, level)).save(out, format=suffix)
    return out.getvalue()


@contextmanager
def served(
    folder: Path, *detectors: ImageDetector, names: Sequence[str] = "abc", **options: Any
) -> Iterator[tuple[str, Server]]:
    """(address, server) of detectors called a, b ..., on a free port."""
    args = ServeArgs(**{"port": 0, "output_dir": str(folder), **options})
    records = Records(folder)
    limits = {"batch_size": args.batch_size, "queue": args.queue, "most_pixels": args.megapixels * 1_000_000}
    services = {name: Service(name, one, **limits) for name, one in zip(names, detectors, strict=False)}
    server = Server(services, records, args)
    with ExitStack() as stack:
        listener, address = stack.enter_context(listening(args))
        thread = threading.Thread(target=run, args=(server, listener), daemon=True)
        thread.start()
        try:
            yield address, server
        finally:
            server.stop()
            thread.join(10)
            for service in services.values():
                service.close(5)
            records.close()
            assert not thread.is_alive()


def until(condition: Any, seconds: float = 20) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)
