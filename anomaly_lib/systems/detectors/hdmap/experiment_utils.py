"""The thirteen helpers of the template's import block, under the names that its users know."""

import gc
import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.contract import Selection
from anomaly_lib.engine.checkpoint import Checkpoint, load_checkpoint
from anomaly_lib.engine.record import NAME, WHOLE, read_record
from anomaly_lib.errors import OptionError, UserError
from anomaly_lib.files import copy_file, parse_json, write_json
from anomaly_lib.models.detectors.registry import entry_of
from anomaly_lib.systems.detectors.hdmap.conditions import (
    extract_target_domains_from_config,
    image_size_of,
    load_experiment_conditions,
)
from anomaly_lib.systems.detectors.hdmap.demo_maps import demo_split
from anomaly_lib.systems.detectors.hdmap.detector import TransferDetector, load
from anomaly_lib.systems.detectors.hdmap.domain_files import write_domain
from anomaly_lib.systems.detectors.hdmap.options import Args
from anomaly_lib.systems.detectors.hdmap.reader import DomainSplit, MultiDomainHDMAPDataModule, check_domain
from anomaly_lib.systems.detectors.hdmap.transfer import domain_results, source_decision

GRADES = ((0.9, "우수"), (0.8, "양호"), (0.7, "보통"), (0.0, "개선필요"))  # excellent, good, fair, needs work


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
    datamodule_class: type[MultiDomainHDMAPDataModule] = MultiDomainHDMAPDataModule,
    source_domain: str = "domain_A",
    target_domains: Sequence[str] | str = "auto",
    batch_size: int = 16,
    image_size: Any = "224x224",
    dataset_root: Path | str | None = None,
    validation_strategy: str = "source_test",
    num_workers: int = 16,
    *,
    resize_method: str = "resize_bilinear",
    seed: int = 42,
) -> MultiDomainHDMAPDataModule:
    """The data of an experiment; without `dataset_root` built-in synthetic maps.

    `num_workers` is the template's and means nothing: the maps are read once, into memory.
    """
    del num_workers
    height, width = image_size_of(image_size)
    return datamodule_class(
        dataset_root,
        source_domain=source_domain,
        target_domains=target_domains,
        validation_strategy=validation_strategy,
        train_batch_size=batch_size,
        eval_batch_size=batch_size,
        target_size=(height, width),
        resize_method=resize_method,
        seed=seed,
        demo=demo_split,
    )


def with_template_names(metrics: dict[str, Any]) -> dict[str, Any]:
    """The template's ``test_image_*`` keys beside ours."""
    return {**metrics, "test_image_AUROC": metrics["image_AUROC"], "test_image_F1Score": metrics["image_F1Score"]}


def evaluate_source_domain(
    model: nn.Module | None,
    engine: TransferDetector,
    datamodule: MultiDomainHDMAPDataModule,
    checkpoint_path: Path | str | None = None,
    *,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Metrics on the source's reported maps; the threshold comes from its validation maps unless given.

    `model` and `engine` are what `train_<model>_model_multi_domain` answers, where our `engine` is a detector; with
    `checkpoint_path` the detector of that file is evaluated instead.
    """
    detector = _detector(model, engine, checkpoint_path)
    return _evaluate(detector, datamodule, [datamodule.source_data], threshold)[datamodule.source_domain]


def evaluate_target_domains(
    model: nn.Module | None,
    engine: TransferDetector,
    datamodule: MultiDomainHDMAPDataModule,
    checkpoint_path: Path | str | None = None,
    results_base_dir: Path | str | None = None,
    target_domains: Sequence[str] | None = None,
    datamodule_class: type[MultiDomainHDMAPDataModule] | None = None,
    save_samples: bool = True,
    current_version_path: Path | str | None = None,
    *,
    threshold: float | None = None,
) -> dict[str, dict[str, Any]]:
    """Metrics on every target, thresholds from the source.

    With `save_samples` scores, figures and sample maps of each domain are written below `current_version_path`, or
    else `results_base_dir`. `datamodule_class` is the template's and means nothing: `datamodule` holds all domains.
    """
    del datamodule_class
    detector = _detector(model, engine, checkpoint_path)
    wanted = datamodule.target_domains if target_domains is None else target_domains
    place = current_version_path or results_base_dir
    chosen = [datamodule.target_data(name) for name in wanted]
    return _evaluate(detector, datamodule, chosen, threshold, Path(place) if place and save_samples else None)


def _detector(model: nn.Module | None, engine: TransferDetector, path: Path | str | None) -> TransferDetector:
    if path is not None:
        return load(Checkpoint(Path(path), load_checkpoint(Path(path), system="hdmap")))
    return engine if model is None or model is engine.model else TransferDetector(model, engine.args, engine.device)


def _evaluate(
    detector: TransferDetector,
    datamodule: MultiDomainHDMAPDataModule,
    domains: Sequence[DomainSplit],
    threshold: float | None,
    folder: Path | None = None,
) -> dict[str, dict[str, Any]]:
    model, args, device = detector.model, detector.args, detector.device
    decision = source_decision(model, datamodule, args, device)
    decision = decision if threshold is None else replace(decision, threshold=threshold)
    scores = detector.score(Selection(args.model, domains, Choice(batch_size=args.batch_size)))
    if folder is not None:
        for data in domains:
            write_domain(folder, data, scores, decision, replace(args, figures=True))
    return {name: with_template_names(found) for name, found in domain_results(scores, decision).items()}


def extract_training_info(engine: TransferDetector | Path | str) -> dict[str, Any]:
    """How training ended, read from the run folder: that of the detector, or the folder itself."""
    run_dir = engine.args.output_dir if isinstance(engine, TransferDetector) else engine
    if run_dir is None:
        raise UserError("engine=: the detector's run had no output_dir=; give the run folder")
    record = read_record(Path(run_dir) / NAME, WHOLE)
    try:
        options: Any = Args.from_saved(record["args"])
    except OptionError as error:
        raise UserError(f"{Path(run_dir) / NAME}: {error}") from None
    history = Path(run_dir) / "metrics.jsonl"
    rows = [line for line in history.read_text(encoding="utf-8").splitlines() if line] if history.is_file() else []
    if not entry_of(options.model).trained:
        return {
            "max_epochs_configured": None, "last_trained_epoch": 0, "early_stopped": False, "best_val_auroc": None,
            "completion_type": "fitted", "completion_description": "memory filled in one pass, nothing to train",
        }  # fmt: skip
    done, wanted, patience = len(rows), options.epochs, options.early_stopping_patience
    values = [
        float(read["val_image_AUROC"])
        for read in (parse_json(row, history) for row in rows)
        if "val_image_AUROC" in read
    ]
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


def transfer_grade(ratio: float) -> str:
    """Above 0.9 excellent, above 0.8 good, above 0.7 fair, else needs work (the template's Korean words)."""
    return next((word for limit, word in GRADES if ratio > limit), GRADES[-1][1])


def analyze_experiment_results(
    source_results: dict[str, Any],
    target_results: dict[str, dict[str, Any]],
    training_info: dict[str, Any],
    condition: dict[str, Any],
    model_type: str = "",
) -> dict[str, Any]:
    """How well the source's detector carries over."""
    own = source_results["image_AUROC"]
    found = {name: metrics["image_AUROC"] for name, metrics in target_results.items()}
    mean = sum(found.values()) / len(found)
    spread = (sum((value - mean) ** 2 for value in found.values()) / len(found)) ** 0.5
    ratio = mean / own if own else 0.0
    return {
        "experiment_name": condition["name"],
        "model_type": model_type,
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


def organize_source_domain_results(
    sevnet_viz_path: Path | str,
    results_base_dir: Path | str,
    source_domain: str,
    specific_version_path: Path | str | None = None,
) -> bool:
    """Copy ``{fault,good}/*.png`` of a folder (or of ``images/`` in it) into ``visualize/source_domain``; True when
    both are there afterwards, as they are already after a run of this library.
    """
    check_domain(source_domain)
    place = Path(specific_version_path or results_base_dir) / "visualize" / "source_domain"
    found = Path(sevnet_viz_path)
    found = found / "images" if (found / "images").is_dir() else found
    for picture in [path for name in ("good", "fault") for path in sorted((found / name).glob("*.png"))]:
        target = place / picture.parent.name / picture.name
        if target.resolve() != picture.resolve():
            copy_file(picture, target)
    return all(any((place / name).glob("*.png")) for name in ("good", "fault"))


def create_experiment_visualization(
    experiment_name: str,
    model_type: str,
    results_base_dir: Path | str,
    source_domain: str,
    target_domains: Sequence[str],
    source_results: dict[str, Any] | None = None,
    target_results: dict[str, Any] | None = None,
) -> Path:
    """Write ``visualize/experiment_info.json`` beside the sample maps and answer that folder."""
    place = Path(results_base_dir) / "visualize"
    content = {
        "experiment_name": experiment_name,
        "model_type": model_type,
        "timestamp": time.strftime("%Y%m%d_%H%M%S"),
        "results_path": str(results_base_dir),
        "source_domain": source_domain,
        "target_domains": list(target_domains),
        "results_summary": {"source_results": source_results, "target_results": target_results},
    }
    write_json(place / "experiment_info.json", content)
    return place


def save_experiment_results(
    result: dict[str, Any],
    result_filename: str,
    log_dir: Path | str,
    logger: logging.Logger | None = None,
    model_type: str = "",
) -> Path:
    """Write a result as ``log_dir/result_filename`` (whole or not at all) and log one line."""
    path = Path(log_dir) / result_filename
    write_json(path, {"model_type": model_type, **result} if model_type else result)
    if logger is not None:
        mean = result.get("avg_target_auroc")
        logger.info("%s: %s, mean target AUROC %s, %s", result["experiment_name"], result["status"], mean, path)
    return path


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
    "save_experiment_results",
    "setup_experiment_logging",
    "setup_warnings_filter",
]
