"""One experiment condition from file to result: the template's helpers (`experiment_utils`) strung together."""

import importlib.util
import time
from pathlib import Path
from typing import Any

from anomaly_lib.backbones.identity import weight_remarks
from anomaly_lib.config import to_plain
from anomaly_lib.engine.checkpoint import Checkpoint, load_checkpoint
from anomaly_lib.engine.record import WHOLE, record_of
from anomaly_lib.files import read_json
from anomaly_lib.models.detectors.registry import entry_of
from anomaly_lib.systems.detectors.hdmap.conditions import args_of, training_names, values_of
from anomaly_lib.systems.detectors.hdmap.detector import load
from anomaly_lib.systems.detectors.hdmap.experiment_utils import (
    analyze_experiment_results,
    cleanup_gpu_memory,
    create_experiment_visualization,
    extract_training_info,
    save_experiment_results,
    setup_experiment_logging,
    setup_warnings_filter,
    with_template_names,
)
from anomaly_lib.systems.detectors.hdmap.options import Args, scale_remarks
from anomaly_lib.systems.detectors.hdmap.script_options import TITLES, ScriptArgs, result_name
from anomaly_lib.systems.detectors.hdmap.train import train


def experiment_folder(log_dir: Path, model: str, name: str, *, fresh: bool) -> Path:
    """``MultiDomainHDMAP/{model}/{name}_{time}``; an interrupted one is continued."""
    base = log_dir / "MultiDomainHDMAP" / model
    for folder in sorted(base.glob(f"{name}_[0-9]*"), reverse=True):
        if not fresh and record_of(folder, WHOLE).get("status") in ("running", "interrupted", "new"):
            return folder
    return base / f"{name}_{time.strftime('%Y%m%d_%H%M%S')}"


def options_for(condition: dict[str, Any], model: str, script: ScriptArgs, folder: Path) -> tuple[Args, list[str]]:
    """The condition's options with what the command line says on top; what of them has no meaning for the model."""
    values = values_of(condition, model)
    said = {"data_path": script.data_path, "weights": script.weights, "seed": script.seed}
    values |= {name: value for name, value in said.items() if value is not None}
    values |= {"download": True} if script.download else {}
    values |= {} if script.scale == "auto" else {"scale": script.scale}
    values |= {"tensorboard": importlib.util.find_spec("tensorboard") is not None, "output_dir": str(folder)}
    unread = training_names(values)
    remark = [f"{model} is fitted, not trained: {', '.join(unread)} of the condition have no meaning"] if unread else []
    return args_of(values), remark


def train_model_multi_domain(
    model: str, datamodule: Any, config: dict[str, Any], results_base_dir: str | Path, logger: Any
) -> tuple[Any, Any, Path | None]:
    """A model trained on a data module with a condition's config: its module, its detector, its best checkpoint.

    The checkpoint is None for a model that is fitted, not trained.
    """
    values = values_of({"name": "experiment", "config": config}, model) | {"output_dir": str(results_base_dir)}
    args = args_of(values | {"data_path": None if datamodule.root is None else str(datamodule.root)})
    logger.info("%s: from %s to %s", model, datamodule.source_domain, ", ".join(datamodule.target_domains))
    outcome = train(args, datamodule)
    assert outcome.checkpoint is not None
    detector = load(Checkpoint(outcome.checkpoint, load_checkpoint(outcome.checkpoint, system="hdmap")))
    return detector.model, detector, outcome.checkpoint if entry_of(model).trained else None


def run_single_experiment(model: str, condition: dict[str, Any], log_dir: str | None = None) -> dict[str, Any]:
    """The result of one condition in `log_dir`, by default ``results/MODEL/TIME``."""
    folder = Path(log_dir or f"results/{model}/{time.strftime('%Y%m%d_%H%M%S')}")
    folder.mkdir(parents=True, exist_ok=True)
    return run_condition(condition, 0, model, ScriptArgs(log_dir=str(folder)), folder)


def run_condition(
    condition: dict[str, Any], number: int, model: str, script: ScriptArgs, log_dir: Path
) -> dict[str, Any]:
    """Train and evaluate one condition. A failure becomes a result with status "failed", never an exception."""
    setup_warnings_filter()
    folder = experiment_folder(log_dir, model, condition["name"], fresh=script.fresh)
    logger = setup_experiment_logging(log_dir / f"{model}_experiment_{number:02d}.log", f"{model}.{condition['name']}")
    result: dict[str, Any] = {
        "condition": condition, "experiment_name": condition["name"], "model_type": TITLES.get(model, model),
        "status": "failed", "source_results": {}, "target_results": {}, "best_checkpoint": None, "training_info": {},
        "experiment_path": str(folder), "avg_target_auroc": None, "gpu_id": script.gpu_id,
    }  # fmt: skip
    try:
        cleanup_gpu_memory()
        args, remarks = options_for(condition, model, script, folder)
        logger.info("%s: %s", condition["name"], condition["description"])
        for remark in remarks:
            logger.info("%s", remark)
        outcome = train(args)
        result |= _success(condition, args, outcome.run_dir, outcome.checkpoint)
        result["notes"] += remarks
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
    source = with_template_names(domains[args.source_domain])
    targets = {name: with_template_names(metrics) for name, metrics in domains.items() if name != args.source_domain}
    info = extract_training_info(run_dir)
    analysis = analyze_experiment_results(source, targets, info, condition, args.model)
    create_experiment_visualization(
        condition["name"], args.model, run_dir, args.source_domain, list(targets), source, targets
    )
    weights = record_of(run_dir)["weights"]
    return {
        "status": "success",
        "source_domain": args.source_domain,
        "source_results": source,
        "target_results": targets,
        "best_checkpoint": str(checkpoint) if entry_of(args.model).trained and checkpoint else None,
        "checkpoint": str(checkpoint) if checkpoint else None,
        "training_info": info,
        "avg_target_auroc": analysis["avg_target_auroc"],
        "analysis": analysis,
        "options": to_plain(args),
        "notes": scale_remarks(args) + weight_remarks(weights),
    }
