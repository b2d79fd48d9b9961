"""One experiment condition from file to result, under the names that the template's users know.

The thirteen helpers of the template's import block live here (conditions come from `hdmap_options`); `run_condition`
strings them together and `script_main` is the body of the five ``multi_domain_hdmap_<model>-training.py`` scripts.
"""

import gc
import importlib.util
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import torch

from anomaly_lib.config import Switch, arg, command, to_plain
from anomaly_lib.data.hdmap.reader import MultiDomainHDMAPDataModule
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json, write_json
from anomaly_lib.recipes.detectors.options import TRAINED, resolve
from anomaly_lib.recipes.hdmap import recipe as hdmap
from anomaly_lib.recipes.hdmap.options import (
    Args,
    args_of,
    at_demo_scale,
    extract_target_domains_from_config,
    image_size_of,
    load_experiment_conditions,
)

GRADES = ((0.9, "우수"), (0.8, "양호"), (0.7, "보통"), (0.0, "개선필요"))  # excellent, good, fair, needs work
TITLES = {"patchcore": "PatchCore", "padim": "PaDiM", "reverse_distillation": "ReverseDistillation"} | {
    "draem": "DRAEM", "draem_sevnet": "DRAEM-SevNet",
}  # fmt: skip


def cleanup_gpu_memory() -> None:
    """Drop what the last experiment left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def setup_warnings_filter() -> None:
    """Keep library warnings out of the logs."""
    for kind in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=kind)


def setup_experiment_logging(log_file_path: Path | str, experiment_name: str) -> logging.Logger:
    """A logger that writes ``time - name - level - message`` lines to a file."""
    path = Path(log_file_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger(experiment_name)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
    logger.addHandler(handler)
    return logger


def create_multi_domain_datamodule(
    source_domain: str,
    target_domains: Sequence[str] | str = "auto",
    *,
    batch_size: int = 16,
    image_size: Any = "224x224",
    dataset_root: Path | str | None = None,
    validation_strategy: str = "source_test",
    resize_method: str = "resize_bilinear",
    seed: int = 42,
) -> MultiDomainHDMAPDataModule:
    """The data of an experiment; without `dataset_root` built-in synthetic maps."""
    height, width = image_size_of(image_size)
    return MultiDomainHDMAPDataModule(
        dataset_root,
        source_domain=source_domain,
        target_domains=target_domains,
        validation_strategy=validation_strategy,
        train_batch_size=batch_size,
        eval_batch_size=batch_size,
        target_size=(height, width),
        resize_method=resize_method,
        seed=seed,
    )


def _named(metrics: dict[str, Any]) -> dict[str, Any]:
    """The template's ``test_image_*`` keys beside ours."""
    return {**metrics, "test_image_AUROC": metrics["image_AUROC"], "test_image_F1Score": metrics["image_F1Score"]}


def evaluate_source_domain(
    detector: hdmap.Detector, datamodule: MultiDomainHDMAPDataModule, *, threshold: float | None = None
) -> dict[str, Any]:
    """Metrics on the source's reported maps; the threshold comes from its validation maps unless given."""
    found, normal = hdmap.source_threshold(detector.model, datamodule.val_data, detector.args, detector.device)
    score = hdmap.score_domain(detector.model, datamodule.source_data, detector.args, detector.device).score
    limit = found if threshold is None else threshold
    return _named(hdmap.domain_metrics(score, datamodule.source_data.labels, limit, normal))


def evaluate_target_domains(
    detector: hdmap.Detector, datamodule: MultiDomainHDMAPDataModule, *, threshold: float | None = None
) -> dict[str, dict[str, Any]]:
    """Metrics on every target, thresholds from the source."""
    found, normal = hdmap.source_threshold(detector.model, datamodule.val_data, detector.args, detector.device)
    limit = found if threshold is None else threshold
    results = {}
    for data in datamodule.test_data:
        score = hdmap.score_domain(detector.model, data, detector.args, detector.device).score
        results[data.domain] = _named(hdmap.domain_metrics(score, data.labels, limit, normal))
    return results


def extract_training_info(run_dir: Path | str) -> dict[str, Any]:
    """How training ended, read from the run folder."""
    record = read_json(Path(run_dir) / "run.json")
    options = record["args"]
    history = Path(run_dir) / "metrics.jsonl"
    rows = [line for line in history.read_text(encoding="utf-8").splitlines() if line] if history.is_file() else []
    if options["model"] not in TRAINED:
        return {
            "max_epochs_configured": None, "last_trained_epoch": 0, "early_stopped": False, "best_val_auroc": None,
            "completion_type": "fitted", "completion_description": "memory filled in one pass, nothing to train",
        }  # fmt: skip
    done, wanted, patience = len(rows), options["epochs"], options["early_stopping_patience"]
    values = [float(read["val_image_AUROC"]) for read in map(_json_line, rows) if "val_image_AUROC" in read]
    stopped = record["status"] == "finished" and done < wanted
    kind = "early_stopping" if stopped else "max_epochs_reached" if done >= wanted else "interrupted"
    about = {
        "early_stopping": f"No improvement for {patience} epochs",
        "max_epochs_reached": f"all {wanted} epochs",
        "interrupted": f"ended after {done} of {wanted} epochs",
    }
    return {
        "max_epochs_configured": wanted,
        "last_trained_epoch": done,
        "early_stopped": stopped,
        "early_stop_reason": about["early_stopping"] if stopped else None,
        "best_val_auroc": max(values) if values else None,
        "completion_type": kind,
        "completion_description": about[kind],
        "seconds": record.get("seconds"),
        "f1_threshold_note": "F1 is taken at the source's threshold; on targets compare AUROC or the oracle values",
    }


def _json_line(line: str) -> dict[str, Any]:
    import json

    return dict(json.loads(line))


def transfer_grade(ratio: float) -> str:
    """Above 0.9 excellent, above 0.8 good, above 0.7 fair, else needs work (the template's Korean words)."""
    return next((word for limit, word in GRADES if ratio > limit), GRADES[-1][1])


def analyze_experiment_results(
    source_results: dict[str, Any],
    target_results: dict[str, dict[str, Any]],
    training_info: dict[str, Any],
    condition: dict[str, Any],
) -> dict[str, Any]:
    """How well the source's detector carries over."""
    own = source_results["image_AUROC"]
    found = {name: metrics["image_AUROC"] for name, metrics in target_results.items()}
    mean = sum(found.values()) / len(found)
    spread = (sum((value - mean) ** 2 for value in found.values()) / len(found)) ** 0.5
    ratio = mean / own if own else 0.0
    return {
        "experiment_name": condition["name"],
        "source_auroc": own,
        "avg_target_auroc": mean,
        "std_target_auroc": spread,
        "transfer_ratio": ratio,
        "transfer_grade": transfer_grade(ratio),
        "domain_transfer_gap": own - mean,
        "best_target": max(found, key=found.__getitem__),
        "worst_target": min(found, key=found.__getitem__),
        "target_domain_count": len(found),
        "training_epochs": training_info["last_trained_epoch"],
        "early_stopped": training_info["early_stopped"],
        "best_val_auroc": training_info["best_val_auroc"],
        "domain_performances": {
            name: {"auroc": metrics["image_AUROC"], "f1_score": metrics["image_F1Score"]}
            for name, metrics in target_results.items()
        },
    }


def organize_source_domain_results(run_dir: Path | str) -> bool:
    """True when the source's sample maps lie in ``visualize/source_domain/{good,fault}``."""
    place = Path(run_dir) / "visualize" / "source_domain"
    return all(any((place / name).glob("*.png")) for name in ("good", "fault"))


def create_experiment_visualization(
    experiment_name: str,
    model_type: str,
    run_dir: Path | str,
    *,
    source_domain: str,
    target_domains: Sequence[str],
    source_results: dict[str, Any] | None = None,
    target_results: dict[str, Any] | None = None,
) -> Path:
    """Write ``visualize/experiment_info.json`` beside the sample maps and answer that folder."""
    place = Path(run_dir) / "visualize"
    content = {
        "experiment_name": experiment_name,
        "model_type": model_type,
        "timestamp": time.strftime("%Y%m%d_%H%M%S"),
        "results_path": str(run_dir),
        "source_domain": source_domain,
        "target_domains": list(target_domains),
        "results_summary": {"source_results": source_results, "target_results": target_results},
    }
    write_json(place / "experiment_info.json", content)
    return place


def save_experiment_results(
    result: dict[str, Any], result_filename: str, log_dir: Path | str, logger: logging.Logger | None = None
) -> Path:
    """Write a result as ``log_dir/result_filename`` (whole or not at all) and log one line."""
    path = Path(log_dir) / result_filename
    write_json(path, result)
    if logger is not None:
        mean = result.get("avg_target_auroc")
        logger.info("%s: %s, mean target AUROC %s, %s", result["experiment_name"], result["status"], mean, path)
    return path


# -- one condition --------------------------------------------------------------------------------------------------


@dataclass
class ScriptArgs:
    """One condition of a file on one GPU."""

    gpu_id: Optional[str] = arg(None, "GPU to use, as CUDA numbers it; without CUDA only a name", type=str)
    experiment_id: Optional[int] = arg(None, "which condition, from 0", type=int, at_least=0)
    log_dir: Optional[str] = arg(None, "folder of this session's logs and results", type=str, aliases=["results-dir"])
    get_experiment_count: Switch = arg(False, "print the number of conditions and leave")
    conditions: Optional[str] = arg(None, "condition file; None = the one beside the script", type=str)
    data_path: Optional[str] = arg(
        None, "folder that holds domain_A ... domain_D; None = the condition's, else synthetic maps", type=str,
        aliases=["dataset-root"],
    )  # fmt: skip
    weights: Optional[str] = arg(None, "backbone weights: file, or 'random'", type=str)
    download: Switch = arg(False, "allow the backbone's published weights to be downloaded")
    scale: str = arg(
        "auto", "full = as the file says, demo = small; auto = demo on synthetic maps", choices=["auto", "full", "demo"]
    )
    seed: Optional[int] = arg(None, "seed instead of the condition's", type=int, at_least=0)
    fresh: Switch = arg(False, "run again even if the result is there")


def result_name(number: int, name: str, gpu: str | None) -> str:
    return f"result_exp_{number:02d}_{name}_gpu{gpu or 0}.json"


def finished_result(log_dir: Path, number: int, name: str) -> dict[str, Any] | None:
    """The successful result of this condition in this session, whatever GPU it ran on."""
    for path in sorted(log_dir.glob(result_name(number, name, "*"))):
        result = read_json(path)
        if isinstance(result, dict) and result.get("status") == "success":
            return result
    return None


def experiment_folder(log_dir: Path, model: str, name: str, *, fresh: bool) -> Path:
    """``MultiDomainHDMAP/{model}/{name}_{time}``; an interrupted one is continued."""
    base = log_dir / "MultiDomainHDMAP" / model
    for folder in sorted(base.glob(f"{name}_[0-9]*"), reverse=True):
        record = folder / "run.json"
        if not fresh and record.is_file() and read_json(record)["status"] in ("running", "interrupted", "new"):
            return folder
    return base / f"{name}_{time.strftime('%Y%m%d_%H%M%S')}"


def options_for(condition: dict[str, Any], model: str, script: ScriptArgs, folder: Path) -> Args:
    """The condition's options with what the command line says on top."""
    args = args_of(condition, model)
    args = replace(
        args,
        data_path=script.data_path or args.data_path,
        weights=script.weights or args.weights,
        download=script.download or args.download,
        seed=args.seed if script.seed is None else script.seed,
        tensorboard=importlib.util.find_spec("tensorboard") is not None,
        output_dir=str(folder),
    )
    small = script.scale == "demo" or (script.scale == "auto" and args.data_path is None)
    return at_demo_scale(args) if small else args


def run_condition(condition: dict[str, Any], number: int, model: str, script: ScriptArgs) -> dict[str, Any]:
    """Train and evaluate one condition. A failure becomes a result with status "failed", never an exception."""
    assert script.log_dir is not None
    log_dir = Path(script.log_dir)
    folder = experiment_folder(log_dir, model, condition["name"], fresh=script.fresh)
    logger = setup_experiment_logging(log_dir / f"{model}_experiment_{number:02d}.log", f"{model}.{condition['name']}")
    result: dict[str, Any] = {
        "condition": condition, "experiment_name": condition["name"], "model_type": TITLES[model],
        "status": "failed", "source_results": {}, "target_results": {}, "best_checkpoint": None, "training_info": {},
        "experiment_path": str(folder), "avg_target_auroc": None, "gpu_id": script.gpu_id,
    }  # fmt: skip
    try:
        cleanup_gpu_memory()
        args = options_for(condition, model, script, folder)
        logger.info("%s: %s", condition["name"], condition["description"])
        outcome = hdmap.train(args)
        result |= _success(condition, args, outcome.run_dir, outcome.checkpoint)
    except KeyboardInterrupt:
        raise
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
        logger.exception("%s failed", condition["name"])
    result["timestamp"] = time.strftime("%Y-%m-%dT%H:%M:%S")
    save_experiment_results(result, result_name(number, condition["name"], script.gpu_id), log_dir, logger)
    cleanup_gpu_memory()
    return result


def _success(condition: dict[str, Any], args: Args, run_dir: Path, checkpoint: Path | None) -> dict[str, Any]:
    domains = read_json(run_dir / "domains.json")
    source = _named(domains[args.source_domain])
    targets = {name: _named(metrics) for name, metrics in domains.items() if name != args.source_domain}
    info = extract_training_info(run_dir)
    analysis = analyze_experiment_results(source, targets, info, condition)
    create_experiment_visualization(
        condition["name"], args.model, run_dir, source_domain=args.source_domain, target_domains=list(targets),
        source_results=source, target_results=targets,
    )  # fmt: skip
    plain = condition["config"].get("weights") == "random" or resolve(args).weights == "random"
    return {
        "status": "success",
        "source_domain": args.source_domain,
        "source_results": source,
        "target_results": targets,
        "best_checkpoint": str(checkpoint) if args.model in TRAINED and checkpoint else None,
        "checkpoint": str(checkpoint) if checkpoint else None,
        "training_info": info,
        "avg_target_auroc": analysis["avg_target_auroc"],
        "analysis": analysis,
        "options": to_plain(resolve(args)),
        "notes": (["synthetic maps"] if args.data_path is None else [])
        + (["random weights"] if plain and not args.model.startswith("draem") else []),
    }


def run_script(model: str, condition_file: Path, script: ScriptArgs) -> int:
    """The body of a training script; the exit code tells the truth."""
    conditions = load_experiment_conditions(script.conditions or condition_file)
    if script.get_experiment_count:
        sys.stdout.write(f"{len(conditions)}\n")
        return 0
    missing = [f"--{n.replace('_', '-')}" for n in ("gpu_id", "experiment_id", "log_dir") if getattr(script, n) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} must be given (or --get-experiment-count)")
    assert script.experiment_id is not None
    assert script.log_dir is not None
    if script.experiment_id >= len(conditions):
        raise UserError(f"--experiment-id {script.experiment_id}: the file has conditions 0..{len(conditions) - 1}")
    condition = conditions[script.experiment_id]
    earlier = finished_result(Path(script.log_dir), script.experiment_id, condition["name"])
    if earlier is not None and not script.fresh:
        sys.stdout.write(f"{condition['name']}: already done, {earlier['experiment_path']}\n")
        return 0
    _name_log(Path(script.log_dir), script.experiment_id, script.gpu_id)
    result = run_condition(condition, script.experiment_id, model, script)
    if result["status"] != "success":
        sys.stderr.write(f"{condition['name']}: failed ({result['error']})\n")
        return 1
    sys.stdout.write(
        f"{condition['name']}: transfer ratio {result['analysis']['transfer_ratio']:.3f} "
        f"({result['analysis']['transfer_grade']}), {result['experiment_path']}\n"
    )
    return 0


def _name_log(log_dir: Path, number: int, gpu: str | None) -> None:
    """The runner cannot know the GPU when it opens the log; the documented name points to it."""
    log = log_dir / f"output_exp_{number}.log"
    named = log_dir / f"output_exp_{number}_gpu{gpu}.log"
    if log.is_file() and not named.exists():
        named.symlink_to(log.name)


def script_main(model: str, script_file: str, argv: Sequence[str] | None = None) -> int:
    """Parse and run; `script_file` is the calling script, its condition file lies beside it."""
    words = list(sys.argv[1:] if argv is None else argv)
    _choose_gpu(words)
    setup_warnings_filter()
    path = Path(script_file)
    beside = path.with_name(path.name.replace("-training.py", "-exp_condition.json"))
    return command(
        ScriptArgs,
        lambda script: run_script(model, beside, script),
        words,
        prog=path.name,
        description=f"{TITLES[model]} from one HDMAP domain to the others: one condition of {beside.name}.",
    )


def _choose_gpu(words: Sequence[str]) -> None:
    """Only this GPU is seen; must be said before CUDA wakes up."""
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name in ("--gpu-id", "--gpu_id"):
            os.environ["CUDA_VISIBLE_DEVICES"] = value or (words[place + 1] if place + 1 < len(words) else "")


__all__ = [
    "analyze_experiment_results",
    "cleanup_gpu_memory",
    "create_experiment_visualization",
    "create_multi_domain_datamodule",
    "evaluate_source_domain",
    "evaluate_target_domains",
    "extract_target_domains_from_config",
    "extract_training_info",
    "load_experiment_conditions",
    "organize_source_domain_results",
    "run_condition",
    "save_experiment_results",
    "script_main",
    "setup_experiment_logging",
    "setup_warnings_filter",
]
