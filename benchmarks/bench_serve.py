"""The server beside plain `predict` on the same images: latencies, images per second, and whether the answers agree.

    python benchmarks/bench_serve.py [--requests 400] [--clients 1 16] [--output serve.json]

One process serves on the loopback address, another asks; both use one core each. `predict` scores the same files one at
a time and in batches of eight, decoding included.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import httpx
import torch
from harness import BenchmarkArgs, finish, machine

from anomaly_lib.command_line import command
from anomaly_lib.config import arg
from anomaly_lib.files import write_between

ROOT = Path(__file__).resolve().parents[1]
MARKS = ("<!-- bench_serve begins -->", "<!-- bench_serve ends -->")


@dataclass
class Args(BenchmarkArgs):
    """Requests to the server."""

    requests: int = arg(400, "requests at each number of clients", at_least=16)
    clients: list[int] = arg([1, 16], "how many ask at a time", at_least=1)
    images: int = arg(16, "different images", at_least=1)
    size: int = arg(512, "their edge in pixels", at_least=16)
    page: Optional[str] = arg(None, "page whose table is renewed", type=str)
    models: list[str] = arg(["patchcore", "padim"], "which detectors", choices=["patchcore", "padim", "draem"])


def write_images(folder: Path, count: int, size: int) -> list[Path]:
    """Pictures as a camera sends them: PNG, good and damaged ones."""
    from PIL import Image

    from anomaly_lib.data.demo.items import render

    folder.mkdir()
    pictures = [*render("capsule", "good", count - count // 2, split="more", size=size)[0]]
    pictures += [*render("capsule", "crack", count // 2, size=size)[0]]
    paths = [folder / f"{number:03d}.png" for number in range(count)]
    for path, pixels in zip(paths, pictures, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def trained(model: str, folder: Path) -> Path:
    """A detector of the built-in capsules at 224 pixels on the packaged CLIP."""
    from anomaly_lib.systems.registry import SYSTEMS

    system = SYSTEMS["detectors"]
    args = system.Args(model=model, dataset="demo", obj="capsule", output_dir=str(folder), figures=False)
    checkpoint = system.train(args).checkpoint
    assert checkpoint is not None
    return checkpoint


class Served:
    """The server in a process of its own."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        words = ["-m", "anomaly_lib", "serve", str(checkpoint), "--port", "0", "--output-dir", str(folder)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True, env=env)
        assert self.process.stdout is not None
        line = next(line for line in self.process.stdout if " at http" in line)
        self.address = line.split(" at ")[1].split("/ ")[0]

    def memory(self, client: httpx.Client) -> float:
        """Resident MiB."""
        found = re.search(r"^process_resident_memory_bytes (\S+)", client.get("/metrics").text, re.MULTILINE)
        return float(found[1]) / 2**20 if found else float("nan")

    def end(self) -> float:
        """Stop it; the seconds that took."""
        began = time.perf_counter()
        self.process.terminate()
        assert self.process.wait(120) == 0
        return time.perf_counter() - began


def asked(client: httpx.Client, bodies: Sequence[bytes], requests: int, clients: int) -> dict[str, Any]:
    """Latencies of so many requests, `clients` at a time, and the scores that came."""
    scores: dict[int, set[float]] = {}

    def ask(number: int) -> float:
        began = time.perf_counter()
        answer = client.post("/predict", content=bodies[number % len(bodies)])
        spent = time.perf_counter() - began
        answer.raise_for_status()
        scores.setdefault(number % len(bodies), set()).add(answer.json()["results"][0]["score"])
        return spent

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(2 * clients)))  # warm-up
        began = time.perf_counter()
        spent = sorted(pool.map(ask, range(requests)))
        whole = time.perf_counter() - began
    return {
        "clients": clients, "requests": requests, "images_per_second": requests / whole,
        "p50_ms": 1e3 * statistics.median(spent), "p99_ms": 1e3 * spent[min(requests - 1, int(0.99 * requests))],
        "scores": scores,
    }  # fmt: skip


def plain(checkpoint: Path, paths: Sequence[Path], repeats: int) -> tuple[dict[str, float], list[float]]:
    """Images per second of `predict` on the files, one by one and eight at a time, and the scores."""
    import anomaly_lib

    torch.set_num_threads(1)
    detector = anomaly_lib.load(checkpoint)
    speed, scores = {}, detector.predict(list(paths)).score.tolist()
    for name, step in (("one by one", 1), ("eight at a time", 8)):
        spent = []
        for _ in range(repeats):
            began = time.perf_counter()
            for start in range(0, len(paths), step):
                detector.predict(list(paths[start : start + step]))
            spent.append(time.perf_counter() - began)
        speed[name] = len(paths) / min(spent)
    return speed, scores


def bench_model(model: str, work: Path, paths: Sequence[Path], args: Args) -> dict[str, Any]:
    checkpoint = trained(model, work / model)
    speed, wanted = plain(checkpoint, paths, args.repeats)
    bodies, runs = [path.read_bytes() for path in paths], []
    server = Served(checkpoint, work / f"{model}-served")
    with httpx.Client(base_url=server.address, timeout=120, trust_env=False) as client:
        asked(client, bodies, len(bodies), 1)
        before = server.memory(client)
        for clients in args.clients:
            run = asked(client, bodies, args.requests, clients)
            found = run.pop("scores")
            run["largest_relative_difference"] = max(
                abs(score - wanted[which]) / abs(wanted[which]) for which, some in found.items() for score in some
            )
            run["ratio_to_predict"] = run["images_per_second"] / speed["one by one"]
            runs.append(run)
            print(f"{model}, {clients} at a time: {json.dumps(run)}", flush=True)
        grown = server.memory(client) - before
    return {
        "predict_images_per_second": speed,
        "served": runs,
        "memory_grown_mib": grown,
        "seconds_to_end": server.end(),
    }


def table(report: dict[str, Any]) -> str:
    """The page's table."""
    first = "| detector | at a time | images/s | of plain `predict` | p50 | p99 | largest difference of a score |"
    lines = [first, "|---|---|---|---|---|---|---|"]
    for model, found in report["models"].items():
        for run in found["served"]:
            lines.append(
                f"| {model} | {run['clients']} | {run['images_per_second']:.1f} | {run['ratio_to_predict']:.2f} | "
                f"{run['p50_ms']:.0f} ms | {run['p99_ms']:.0f} ms | {run['largest_relative_difference']:.0e} |"
            )
    return "\n".join(lines)


def described(report: dict[str, Any]) -> str:
    """What was measured where, and what else was seen."""
    where, found = report["machine"], report["models"].values()
    count, height, width = report["images"]
    return (
        f"{count} PNG images of {height}x{width} pixels, detectors of 224 pixels on the packaged CLIP; the server on "
        f"one thread of {where['cpu']} ({where['cores']} cores, of which clients and other work took a part: "
        f"load {report['load'][0]:.0f} to {report['load'][1]:.0f}). No request failed. Memory grew by "
        f"{max(one['memory_grown_mib'] for one in found):.0f} MiB at most; the server ended in "
        f"{max(one['seconds_to_end'] for one in found):.1f} s. `benchmarks/bench_serve.py`, commit {where['commit']}."
    )


def bench(args: Args) -> None:
    """Measure, print, write."""
    with tempfile.TemporaryDirectory() as name:
        work, load = Path(name), os.getloadavg()[0]
        paths = write_images(work / "images", args.images, args.size)
        report: dict[str, Any] = {
            "machine": machine("fastapi", "uvicorn"), "images": [args.images, args.size, args.size],
            "models": {model: bench_model(model, work, paths, args) for model in args.models},
            "load": sorted([load, os.getloadavg()[0]]),
        }  # fmt: skip
    print(table(report))
    if args.page is not None:
        write_between(Path(args.page), MARKS, f"{table(report)}\n\n{described(report)}")
    finish(report, args.output)


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, bench, argv, prog="bench_serve.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
