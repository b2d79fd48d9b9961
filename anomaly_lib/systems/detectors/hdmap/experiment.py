"""One experiment condition from file to result.

`run_condition` strings the template's helpers (`experiment_utils`) together; `script_main` is the body of the five
``multi_domain_hdmap_<model>-training.py`` scripts.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from anomaly_lib.backbones.identity import weight_remarks
from anomaly_lib.config import Options, Switch, arg, command, to_plain
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json
from anomaly_lib.systems.detectors.hdmap import recipe as hdmap
from anomaly_lib.systems.detectors.hdmap.experiment_utils import (
    analyze_experiment_results,
    cleanup_gpu_memory,
    create_experiment_visualization,
    extract_training_info,
    load_experiment_conditions,
    save_experiment_results,
    setup_experiment_logging,
    setup_warnings_filter,
    with_template_names,
)
from anomaly_lib.systems.detectors.hdmap.options import Args, args_of, at_demo_scale
from anomaly_lib.systems.detectors.options import TRAINED, resolve

TITLES = {"patchcore": "PatchCore", "padim": "PaDiM", "reverse_distillation": "ReverseDistillation"} | {
    "draem": "DRAEM", "draem_sevnet": "DRAEM-SevNet",
}  # fmt: skip


@dataclass
class ScriptArgs(Options):
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
    source = with_template_names(domains[args.source_domain])
    targets = {name: with_template_names(metrics) for name, metrics in domains.items() if name != args.source_domain}
    info = extract_training_info(run_dir)
    analysis = analyze_experiment_results(source, targets, info, condition)
    create_experiment_visualization(
        condition["name"], args.model, run_dir, source_domain=args.source_domain, target_domains=list(targets),
        source_results=source, target_results=targets,
    )  # fmt: skip
    weights = read_json(run_dir / "run.json").get("weights", {})
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
        "notes": (["synthetic maps"] if args.data_path is None else []) + weight_remarks(weights),
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
