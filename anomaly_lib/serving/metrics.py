"""What the server has done, in Prometheus' text format."""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
KEPT = ("/", "/predict", "/mark", "/models", "/history", "/health", "/metrics")  # paths that are told apart


class Metrics:
    """Counts of requests and images, and how long predictions took."""

    def __init__(self) -> None:
        self._lock, self.began, self.last = threading.Lock(), time.monotonic(), time.monotonic()
        self.requests: Counter[tuple[str, int]] = Counter()
        self.images: Counter[tuple[str, str]] = Counter()
        self._buckets, self._seconds = [0] * (len(BUCKETS) + 1), 0.0

    def request(self, path: str, code: int, seconds: float) -> None:
        """An answered request."""
        with self._lock:
            self.last = time.monotonic()
            self.requests[path if path in KEPT else "other", code] += 1
            if path == "/predict":
                self._buckets[sum(seconds > limit for limit in BUCKETS)] += 1
                self._seconds += seconds

    def image(self, model: str, anomalous: bool | None) -> None:
        """A scored image."""
        decision = "undecided" if anomalous is None else "anomalous" if anomalous else "normal"
        with self._lock:
            self.images[model, decision] += 1

    def text(self, waiting: Mapping[str, int], batches: Mapping[str, int], drift: Mapping[str, int]) -> str:
        """All of it; `waiting`, `batches`, `drift`: by model."""
        with self._lock:
            requests, images = dict(self.requests), dict(self.images)
            buckets, seconds = list(self._buckets), self._seconds
        counts = [({"le": f"{limit:g}"}, sum(buckets[: i + 1])) for i, limit in enumerate(BUCKETS)]
        counts.append(({"le": "+Inf"}, sum(buckets)))
        name = "anomaly_lib_predict_seconds"
        parts = [
            _metric("requests_total", "counter", "Answered requests.",
                    [({"path": path, "code": str(code)}, count) for (path, code), count in sorted(requests.items())]),
            _metric("images_total", "counter", "Scored images by what the detector says of them.",
                    [({"model": model, "decision": one}, count) for (model, one), count in sorted(images.items())]),
            _metric("batches_total", "counter", "Batches that images were scored in.", _by_model(batches)),
            _metric("queue_depth", "gauge", "Images that wait for their answer.", _by_model(waiting)),
            _metric("drift", "gauge", "1 once parts are not like the decision's normal data.", _by_model(drift)),
            f"# HELP {name} Time from a request's first byte to its answer.\n# TYPE {name} histogram\n"
            + "".join(_line(f"{name}_bucket", labels, value) for labels, value in counts)
            + _line(f"{name}_sum", {}, seconds) + _line(f"{name}_count", {}, sum(buckets)),
            _metric("uptime_seconds", "gauge", "Time since the start.", [({}, time.monotonic() - self.began)]),
        ]  # fmt: skip
        memory = resident_bytes()
        if memory is not None:
            name = "process_resident_memory_bytes"
            parts.append(f"# HELP {name} Resident memory.\n# TYPE {name} gauge\n{_line(name, {}, memory)}")
        return "".join(parts)


def _by_model(values: Mapping[str, int]) -> list[tuple[dict[str, str], float]]:
    return [({"model": name}, value) for name, value in values.items()]


def _metric(name: str, kind: str, help: str, rows: Iterable[tuple[Mapping[str, str], float]]) -> str:
    name = f"anomaly_lib_{name}"
    return f"# HELP {name} {help}\n# TYPE {name} {kind}\n" + "".join(
        _line(name, labels, value) for labels, value in rows
    )


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{'{' + shown + '}' if shown else ''} {value:.10g}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def resident_bytes() -> int | None:
    """Memory of this process in RAM; None where the kernel does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")), None)
