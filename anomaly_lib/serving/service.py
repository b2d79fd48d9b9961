"""One detector at work: images are decoded while they wait, and those that wait are scored together."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from anomaly_lib.detect.images import ImageDetector
from anomaly_lib.detect.shown import Shown
from anomaly_lib.errors import UserError
from anomaly_lib.serving.uploads import Upload

DECODERS = 2  # threads


class Full(Exception):
    """As many images as may wait are waiting."""


@dataclass(eq=False)
class _Job:
    upload: Upload
    picture: bool  # is what the detector saw to be shown?
    pixels: np.ndarray | None = None
    answer: "Future[Shown]" = field(default_factory=Future)


class Service:
    """A detector, a thread that scores, and what waits for it."""

    def __init__(
        self, name: str, detector: ImageDetector, *, batch_size: int = 8, queue: int = 64, most_pixels: int = 50_000_000
    ) -> None:
        if detector.transductive:
            raise UserError(f"{name}: scores images by one another, so that it cannot answer one by one; use predict")
        self.name, self.detector, self.batch_size, self.queue = name, detector, batch_size, queue
        self.most_pixels, self.waiting, self.batches = most_pixels, 0, 0
        self._ready: deque[_Job] = deque()
        self._change, self._closed = threading.Condition(), False
        self._ahead = threading.Semaphore(2 * batch_size)  # images that are held decoded
        self._pool = ThreadPoolExecutor(DECODERS, thread_name_prefix=f"decode for {name}")
        self._worker = threading.Thread(target=self._work, name=f"detector {name}", daemon=True)
        self._worker.start()

    @contextmanager
    def places(self, count: int) -> Iterator[None]:
        """Room for so many images in the queue, from before they are decoded until they are answered."""
        with self._change:
            if self.waiting + count > self.queue:
                raise Full
            self.waiting += count
        try:
            yield
        finally:
            with self._change:
                self.waiting -= count

    def submit(self, upload: Upload, *, picture: bool = False) -> "Future[Shown]":
        """The prediction of one image, to come. A cancelled one is not scored; with `picture` it can show itself."""
        job = _Job(upload, picture)
        self._pool.submit(self._decode, job)
        return job.answer

    @property
    def alive(self) -> bool:
        return self._worker.is_alive()

    def close(self, seconds: float) -> bool:
        """Take no more, and wait so long for the thread that scores: has it come to its end?"""
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._worker.join(seconds)
        return not self.alive

    # -- the threads ---------------------------------------------------------------------------------------------

    def _decode(self, job: _Job) -> None:
        while not self._ahead.acquire(timeout=0.2):
            if self._closed:
                return
        try:
            if not job.answer.cancelled():
                job.pixels, _ = job.upload.pixels(self.most_pixels), job.upload.sha  # both take their time: here
        except Exception as error:  # noqa: BLE001  (the request's, and no other's)
            self._ahead.release()
            if job.answer.set_running_or_notify_cancel():
                job.answer.set_exception(error)
            return
        with self._change:
            self._ready.append(job)
            self._change.notify()

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._ready or self._closed)
                if self._closed:
                    return
                jobs = [self._ready.popleft() for _ in range(min(self.batch_size, len(self._ready)))]
            wanted = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
            if wanted:
                self.batches += 1
                self._score(wanted)
            self._ahead.release(len(jobs))
            del jobs, wanted  # or their pixels would be held while nothing comes

    def _score(self, jobs: Sequence[_Job]) -> None:
        """Answer all; where that fails each on its own, so that only the request of a bad image fails."""
        try:
            found = self.detector.predict([job.pixels for job in jobs])
            assert isinstance(found, Shown)
            answers = [_alone(found, index, job.picture) for index, job in enumerate(jobs)]
        except Exception as error:  # noqa: BLE001  (whatever it is, the server goes on)
            if len(jobs) == 1:
                if isinstance(error, UserError):
                    error = UserError(f"{jobs[0].upload.name}: {str(error).removeprefix('input 0: ')}")
                jobs[0].answer.set_exception(error)
                return
            for job in jobs:
                self._score([job])
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.answer.set_result(answer)


def _alone(found: Shown, index: int, picture: bool) -> Shown:
    """The prediction of one input, which does not hold the pixels of the others."""
    one, seen = found[index], found.picture(index) if picture else None
    one.seen = None if seen is None else lambda _: seen
    return one
