"""What a training script of the template is told: which condition, where, on what."""

from dataclasses import dataclass
from typing import Optional

from anomaly_lib.config import Options, Switch, arg, override
from anomaly_lib.systems.detectors.hdmap.options import Args

TITLES = {
    "patchcore": "PatchCore",
    "padim": "PaDiM",
    "reverse_distillation": "ReverseDistillation",
    "draem": "DRAEM",
    "draem_sevnet": "DRAEM-SevNet",
}


@dataclass
class ScriptArgs(Options):
    """One condition of a file on one GPU."""

    gpu_id: Optional[str] = arg(None, "GPU to use, as CUDA numbers it; without CUDA only a name", type=str)
    experiment_id: Optional[int] = arg(None, "which condition, from 0", type=int, at_least=0)
    log_dir: Optional[str] = arg(None, "folder of this session's logs and results", type=str, aliases=["results-dir"])
    get_experiment_count: Switch = arg(False, "print the number of conditions and leave")
    conditions: Optional[str] = arg(None, "condition file; None = the one beside the script", type=str)
    data_path: Optional[str] = override(
        Args, "data_path", help="folder that holds domain_A ... domain_D; None = the condition's, else synthetic maps"
    )
    weights: Optional[str] = arg(None, "backbone weights: file, or 'random'", type=str)
    download: Switch = arg(False, "allow the backbone's published weights to be downloaded")
    scale: str = arg(
        "auto", "full = as the file says, demo = small; auto = demo on synthetic maps", choices=["auto", "full", "demo"]
    )
    seed: Optional[int] = arg(None, "seed instead of the condition's", type=int, at_least=0)
    fresh: Switch = arg(False, "run again even if the result is there")


def result_name(number: int, name: str, gpu: str | None) -> str:
    return f"result_exp_{number:02d}_{name}_gpu{gpu or 0}.json"
