"""Check this library on a machine with a GPU: one command, under four minutes, one JSON file.

    python scripts/check_gpu.py                      # needs CUDA; without it one line and exit code 2
    python scripts/check_gpu.py --device cpu         # rehearsal: the same code at smallest sizes

What it holds: scores of every system on the CPU and on the device, each number format, the mamba kernels against the
scan in plain PyTorch, images a second of encoding, fitting and predicting, peak memory, and how long the sweep of 162
PromptAD runs (27 classes, 3 shots, 2 tasks) would take, from three runs.
"""

import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg
from anomaly_lib.errors import UserError
from anomaly_lib.systems.registry import SYSTEMS

SWEEP_RUNS = 162
SHOTS = (1, 2, 4)
TOLERANCE = 1e-3  # of the range of the scores


@dataclass
class Args(Options):
    """The check."""

    device: str = arg("cuda", "cuda, cuda:N, or cpu for a rehearsal of the code")
    output: str = arg("check_gpu.json", "file to write")
    seconds: float = arg(200.0, "no further part is begun after this time", at_least=1)
    systems: list[str] = arg(["all"], "which systems are compared", choices=["all", *SYSTEMS])


def check(args: Args) -> int:
    """Run every part in its turn; a part that fails is noted and hinders no other."""
    import torch

    from anomaly_lib.engine.amp import pick_device
    from anomaly_lib.files import write_json

    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={args.device}: this machine has no CUDA; device=cpu rehearses the check")
    device = pick_device(args.device)
    began = time.monotonic()
    report: dict[str, Any] = {"device": str(device), "torch": torch.__version__, "parts": {}}
    if device.type == "cuda":
        report |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts_of(args, device, Path(folder)).items():
            report["parts"][name] = outcome = noted(part, left=args.seconds - (time.monotonic() - began))
            print(f"{name}: {outcome}")
            write_json(args.output, report)  # what is known so far, should the time end
    report["seconds"] = round(time.monotonic() - began, 1)
    write_json(args.output, report)
    failed = [name for name, outcome in report["parts"].items() if outcome.get("failed")]
    print(
        f"{args.output}: {len(report['parts'])} parts in {report['seconds']} s, failed: {', '.join(failed) or 'none'}"
    )
    return 1 if failed else 0


def noted(part: Callable[[], dict[str, Any]], *, left: float) -> dict[str, Any]:
    """What a part says, and how long it took; or why it says nothing."""
    if left <= 0:
        return {"skipped": "no time left"}
    started = time.monotonic()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = part()
    except Exception as error:  # noqa: BLE001  (one broken part must not hide the others)
        found = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    return found | {"seconds": round(time.monotonic() - started, 2)}


def parts_of(args: Args, device: Any, work: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """The parts by name, the most telling first."""
    systems = list(SYSTEMS) if "all" in args.systems else args.systems
    small = device.type == "cpu"
    found: dict[str, Callable[[], dict[str, Any]]] = {"kernels": lambda: kernels(device)}
    for system in systems:
        found[f"parity {system}"] = lambda system=system: parity(system, device, work / system)
    found["throughput"] = lambda: throughput(device, work / "throughput", small=small)
    found["sweep"] = lambda: sweep(device, work / "sweep", small=small)
    for precision in ("bf16", "fp16"):
        for system in systems:
            if "precision" in {f.name for f in fields(SYSTEMS[system].Args.variant({}))}:
                found[f"{precision} {system}"] = lambda system=system, precision=precision: number_format(
                    system, precision, device, work / f"{system}-{precision}"
                )
    return found


# -- parts ----------------------------------------------------------------------------------------------------------


def parity(system: str, device: Any, folder: Path) -> dict[str, Any]:
    """Trained on the CPU, scored on both; and trained on the device from the same seed."""
    import numpy as np

    recipe = SYSTEMS[system]
    trained = recipe.train(recipe.tiny(output_dir=str(folder / "cpu"), device="cpu"))
    scores = []
    for place in ("cpu", str(device)):
        detector = SYSTEMS.load(trained.checkpoint, device=place)
        scores.append(np.asarray(detector.score(detector.items()).scores, dtype=np.float64))
    spread = float(np.ptp(scores[0])) or 1.0
    there = recipe.train(recipe.tiny(output_dir=str(folder / "device"), device=str(device)))
    difference = float(np.abs(scores[0] - scores[1]).max()) / spread
    told = {"failed": f"scores differ by {difference:.2g} of their range"} if difference > TOLERANCE else {}
    return told | {
        "largest_difference": difference,
        "cpu": trained.metrics,
        "device": there.metrics,
    }


def number_format(system: str, precision: str, device: Any, folder: Path) -> dict[str, Any]:
    """A tiny training under autocast: its figures, all finite where they are in fp32."""
    args = SYSTEMS[system].tiny(output_dir=str(folder), device=str(device), precision=precision)
    return {"metrics": SYSTEMS[system].train(args).metrics}


def kernels(device: Any) -> dict[str, Any]:
    """mamba_ssm's scan against ours: largest differences of outputs and of gradients, and the time of each."""
    import torch

    from anomaly_lib.ops.selective_scan import kernel_available, selective_scan

    if device.type != "cuda" or not kernel_available():
        return {"skipped": "needs CUDA and mamba_ssm"}
    torch.manual_seed(0)
    batch, channels, length, states = 4, 64, 256, 16
    x, delta = (torch.randn(batch, length, channels, device=device, requires_grad=True) for _ in range(2))
    A = -torch.rand(channels, states, device=device) - 0.1
    B, C = (torch.randn(batch, length, states, device=device) for _ in range(2))
    D = torch.randn(channels, device=device)
    found: dict[str, Any] = {}
    results = {}
    for backend in ("torch", "kernel"):
        started = time.monotonic()
        for _ in range(5):
            x.grad = None
            y = selective_scan(x, delta, A, B, C, D, backend=backend)
            y.square().mean().backward()
        torch.cuda.synchronize(device)
        found[f"{backend}_seconds"] = (time.monotonic() - started) / 5
        results[backend] = (y.detach(), x.grad.clone())
    for name, ours, theirs in zip(("output", "gradient"), results["torch"], results["kernel"], strict=True):
        found[f"{name}_difference"] = float((ours - theirs).abs().max() / ours.abs().max())
    return found


def throughput(device: Any, folder: Path, *, small: bool) -> dict[str, Any]:
    """Images a second of one PaDiM on an untrained network: encoded, fitted, predicted; and the peak of memory."""
    import torch

    from anomaly_lib.data.demo.items import write_demo
    from anomaly_lib.engine.memory import PeakMemory

    count, size = (8, 64) if small else (200, 256)
    network = {"backbone": "resnet18" if small else "wide_resnet50_2", "weights": "random", "image_size": size}
    write_demo(folder / "parts", categories=["woven"], size=size, train=count, test_good=2, per_defect=1)
    files = sorted((folder / "parts").rglob("good/*.png"))
    system = SYSTEMS["detectors"]
    data = {"dataset": "mvtec", "data_path": str(folder / "parts"), "obj": "woven", "figures": False}
    found: dict[str, Any] = {"images": count, "image_size": size, "network": network["backbone"]}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.monotonic()
        with PeakMemory(device) as peak:
            value = work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        found[f"{name}_images_a_second"] = round(len(files) / (time.monotonic() - started), 2)
        found[f"{name}_peak_mb"] = round(peak.mb, 1)
        return value

    where = {"device": str(device), "cache_dir": str(folder / "cache")}
    run = timed("encode_and_fit", lambda: system.train(
        system.Args(model="padim", output_dir=str(folder / "one"), **network, **data, **where)
    ))  # fmt: skip
    timed("fit_again", lambda: system.train(
        system.Args(model="padim", output_dir=str(folder / "two"), seed=1, **network, **data, **where)
    ))  # fmt: skip
    detector = SYSTEMS.load(run.checkpoint, device=str(device))
    detector.predict(files[:2])
    timed("predict", lambda: detector.predict(files))
    return found


def sweep(device: Any, folder: Path, *, small: bool) -> dict[str, Any]:
    """Three PromptAD trainings of one class, a shot each; what 162 of them would take one after the other."""
    system, spent = SYSTEMS["promptad"], []
    for shot in SHOTS:
        common = {"shot": shot, "output_dir": str(folder / str(shot)), "device": str(device), "figures": False}
        if small:
            args = system.tiny(**common)
        else:
            real = {"backbone": "ViT-B-16-plus-240", "weights": "random", "epochs": 100}
            args = system.Args(**real, **common, cache_dir=str(folder / "cache"))
        started = time.monotonic()
        system.train(args)
        spent.append(time.monotonic() - started)
    hours = sum(spent) / len(spent) * SWEEP_RUNS / 3600
    return {
        "run_seconds": [round(one, 2) for one in spent],
        "epochs": args.epochs,
        "hours_of_162_runs": round(hours, 3),
    }


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, check, argv, prog="check_gpu.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
