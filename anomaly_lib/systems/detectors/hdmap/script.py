"""The body of the ``multi_domain_hdmap_<model>-training.py`` scripts. Loads torch only when there is work."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from anomaly_lib.command_line import command
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json
from anomaly_lib.systems.detectors.hdmap.conditions import load_experiment_conditions
from anomaly_lib.systems.detectors.hdmap.script_options import TITLES, ScriptArgs, result_name


def finished_result(log_dir: Path, number: int, name: str) -> dict[str, Any] | None:
    """The successful result of this condition in this session, whatever GPU it ran on."""
    for path in sorted(log_dir.glob(result_name(number, name, "*"))):
        result = read_json(path)
        if isinstance(result, dict) and result.get("status") == "success":
            return result
    return None


def run_script(model: str, condition_file: Path, script: ScriptArgs) -> int:
    """The body of a training script; the exit code tells the truth."""
    conditions = load_experiment_conditions(script.conditions or condition_file)
    if script.get_experiment_count:
        sys.stdout.write(f"{len(conditions)}\n")
        return 0
    number, folder = script.experiment_id, script.log_dir
    if number is None or folder is None or script.gpu_id is None:
        raise UserError("give gpu_id=, experiment_id= and log_dir= (or get_experiment_count=)")
    if number >= len(conditions):
        raise UserError(f"experiment_id={number}: the file has conditions 0..{len(conditions) - 1}")
    condition, log_dir = conditions[number], Path(folder)
    earlier = finished_result(log_dir, number, condition["name"])
    if earlier is not None and not script.fresh:
        sys.stdout.write(f"{condition['name']}: already done, {earlier['experiment_path']}\n")
        return 0
    _name_log(log_dir, number, script.gpu_id)
    from anomaly_lib.systems.detectors.hdmap.experiment import run_condition

    result = run_condition(condition, number, model, script, log_dir)
    if result["status"] != "success":
        sys.stderr.write(f"{condition['name']}: failed ({result['error']})\n")
        return 1
    sys.stdout.write(
        f"{condition['name']}: transfer ratio {result['analysis']['transfer_ratio']:.3f} "
        f"({result['analysis']['transfer_grade']}), {result['experiment_path']}\n"
    )
    return 0


def _name_log(log_dir: Path, number: int, gpu: str) -> None:
    """The runner cannot know the GPU when it opens the log; the documented name points to it."""
    log = log_dir / f"output_exp_{number}.log"
    named = log_dir / f"output_exp_{number}_gpu{gpu}.log"
    if log.is_file() and not named.exists():
        with suppress(OSError):  # where links are not allowed the log keeps its one name
            named.symlink_to(log.name)


def script_main(model: str, script_file: str, argv: Sequence[str] | None = None) -> int:
    """Parse and run; `script_file` is the calling script, its condition file lies beside it."""
    words = list(sys.argv[1:] if argv is None else argv)
    _choose_gpu(words)
    path = Path(script_file)
    beside = path.with_name(path.name.replace("-training.py", "-exp_condition.json"))
    return command(
        ScriptArgs,
        lambda script: run_script(model, beside, script),
        words,
        prog=path.name,
        description=f"{TITLES.get(model, model)} from one HDMAP domain to the others: one condition of {beside.name}.",
    )


def _choose_gpu(words: Sequence[str]) -> None:
    """Only this GPU is seen; must be said before CUDA wakes up."""
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name in ("--gpu-id", "--gpu_id"):
            os.environ["CUDA_VISIBLE_DEVICES"] = value or (words[place + 1] if place + 1 < len(words) else "")
