"""SOWA on the built-in demo data over several seeds, trained and not; fills the table of docs/manual/sowa.md.

    python scripts/sowa/demo_results.py --seeds 0 1 2 --output-dir runs/sowa/demo_results [--data-path DEMO_FILES]

Every second class trains, the others are only tested. How long to train is decided on training classes that are left
out in turn; the tested classes decide nothing. A killed study goes on where it stopped.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_lib.detect.contract import EvaluateArgs
from anomaly_lib.detect.tables import Cell, Table
from anomaly_lib.files import read_json, write_between
from anomaly_lib.systems.sowa.fit import best_epochs
from anomaly_lib.systems.sowa.train import Args, evaluate, train

SHOWN = ("image_auroc", "image_ap", "pixel_auroc", "pixel_aupro")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "manual" / "sowa.md"
Metrics = dict[str, float]
MARKS = ("<!-- demo results -->", "<!-- end of demo results -->")


def study(seed: int, epochs: int, folder: Path, data_path: str | None, cache_dir: str | None) -> dict[str, Metrics]:
    """The same frozen tower with nothing trained and with SOWA's parts trained, each zero-shot and with four images."""
    common = {"seed": seed, "data_path": data_path, "cache_dir": cache_dir, "figures": False}
    nothing = {
        "prompt_learner": "zero",
        "adapter": "none",
        "epochs": 0,
        "map_calibration": "none",
        "image_score": "text",
    }
    plain = Args(**common, **nothing, output_dir=str(folder / f"plain-{seed}"))
    trained = Args(**common, output_dir=str(folder / f"trained-{seed}"), epochs=epochs)
    found = {}
    for name, options in (("nothing trained", plain), ("trained", trained)):
        result = train(options)
        assert result.checkpoint is not None
        found[f"{name}, zero-shot"] = result.metrics
        found[f"{name}, k=4"] = evaluate(result.checkpoint, EvaluateArgs(shot=4, device="cpu")).metrics
    return found


def main(argv: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--epochs", type=int, default=Args().epochs)
    flags.add_argument("--data-path", help="the demo data as files (python -m anomaly_lib demo DIR); drawn without it")
    flags.add_argument("--output-dir", type=Path, default=Path("runs/sowa/demo_results"))
    flags.add_argument("--cache-dir")
    flags.add_argument("--page", type=Path, default=PAGE)
    args = flags.parse_args(argv)
    found: dict[str, list[Metrics]] = {}
    for seed in args.seeds:
        for name, metrics in study(seed, args.epochs, args.output_dir, args.data_path, args.cache_dir).items():
            found.setdefault(name, []).append(metrics)
    records = [read_json(args.output_dir / f"trained-{seed}" / "run.json") for seed in args.seeds]
    for shots in ("zero-shot", "k=4"):
        pairs = zip(found[f"trained, {shots}"], found[f"nothing trained, {shots}"], strict=True)
        found[f"gain, {shots}"] = [{name: trained[name] - plain[name] for name in SHOWN} for trained, plain in pairs]
    rows: list[dict[str, Cell]] = []
    for name, runs in found.items():
        row: dict[str, Cell] = {"setting": name}
        for metric in SHOWN:
            values = [100 * run[metric] for run in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(set(values)) > 1 else ""
            sign = "+" if name.startswith("gain") else ""
            row[metric] = f"{statistics.mean(values):{sign}.1f}{spread}"
        rows.append(row)
    table = Table(["setting", *SHOWN], rows)
    print(table.text())
    table.write(args.output_dir / "results")
    seeds = ", ".join(map(str, args.seeds))
    first = records[0]
    chosen = ", ".join(str(best_epochs(record["transfer"])) for record in records)
    note = (
        f"Train: {', '.join(first['train_classes'])}. Test: {', '.join(first['test_classes'])}. Seeds {seeds}; epochs "
        f"chosen on left-out training classes: {chosen} of {args.epochs}. Commit {first['git_commit']}."
    )
    write_between(args.page, MARKS, f"{table.markdown()}\n{note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
