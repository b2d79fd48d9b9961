"""Options of the domain-transfer experiments, and condition files turned into them."""

import json
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Optional

from anomaly_lib.config import arg
from anomaly_lib.errors import UserError
from anomaly_lib.systems.detectors.hdmap.reader import DOMAINS, RESIZE_METHODS, VALIDATION
from anomaly_lib.systems.detectors.options import DetectorArgs

DEMO_SIZE = [32, 96]


@dataclass
class Args(DetectorArgs):
    """Train on one HDMAP domain, test on the others."""

    dataset: str = arg("hdmap", "always hdmap here", choices=["hdmap"])
    data_path: Optional[str] = arg(
        None,
        "folder that holds domain_A ... domain_D; None = built-in synthetic maps",
        type=str,
        aliases=["dataset-root"],
    )
    source_domain: str = arg("domain_A", "domain to train on", choices=list(DOMAINS))
    target_domains: list[str] = arg(["auto"], "domains to test on; auto = all others")
    validation_strategy: str = arg(
        "source_test",
        "source_test: as published, the source's test split both selects the epoch and is reported; "
        "held_out: one half selects, the other is reported",
        choices=list(VALIDATION),
    )
    resize_method: str = arg("resize_bilinear", "how maps reach --image-size", choices=list(RESIZE_METHODS))
    condition: str = arg("experiment", "name of the experiment")
    sample_images: int = arg(4, "maps drawn per domain and class", at_least=0)


# Names of a condition's config -> option. Everything else must be an option's own name.
CONFIG_NAMES = {
    "max_epochs": "epochs",
    "num_epochs": "epochs",
    "gradient_clip_val": "grad_clip",
    "target_size": "image_size",
    "dataset_root": "data_path",
    "coreset_sampling_ratio": "coreset_ratio",
    "num_neighbors": "neighbours",
    "anomaly_map_mode": "map_mode",
    "model_type": "model",
    "train_batch_size": "batch_size",
}
SPECIAL = frozenset({"pre_trained", "scheduler"})
TUPLES = ("patch_width_range", "patch_ratio_range")


def without_comments(text: str) -> str:
    """JSON without ``//`` and ``/* */`` comments; what stands inside strings stays."""
    pattern = r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/'
    return re.sub(pattern, lambda match: match.group(1) or "", text, flags=re.DOTALL)


def load_experiment_conditions(json_filename: Path | str) -> list[dict[str, Any]]:
    """The conditions of a file: ``{"experiment_conditions": [...]}`` or ``{"condition_1": {...}, ...}``.

    Comments and commas before a closing bracket are forgiven. Every condition has name, description and config.
    """
    path = Path(json_filename)
    if not path.is_file():
        raise UserError(f"{path}: no such condition file")
    text = re.sub(r",(\s*[}\]])", r"\1", without_comments(path.read_text(encoding="utf-8")))
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if isinstance(content, dict) and isinstance(content.get("experiment_conditions"), list):
        conditions = content["experiment_conditions"]
    elif isinstance(content, dict) and content and all(isinstance(c, dict) and "config" in c for c in content.values()):
        conditions = [{"name": name, **condition} for name, condition in content.items()]
    else:
        raise UserError(f"{path}: expected 'experiment_conditions': [...] or named objects that each have a 'config'")
    for number, condition in enumerate(conditions):
        if not isinstance(condition.get("name"), str) or not isinstance(condition.get("config"), dict):
            raise UserError(f"{path}: condition {number} needs a 'name' and a 'config'")
        condition.setdefault("description", "")
        for name in TUPLES:
            if name in condition["config"]:
                condition["config"][name] = tuple(condition["config"][name])
    names = [condition["name"] for condition in conditions]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: two conditions share a name")
    return conditions


def get_experiment_by_name(conditions: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for condition in conditions:
        if condition["name"] == name:
            return condition
    raise UserError(f"no condition called {name!r}; there are {', '.join(c['name'] for c in conditions)}")


def image_size_of(value: Any) -> list[int]:
    """``"224x224"``, ``[256, 256]`` or ``224``."""
    parts = re.split(r"[x,\s]+", value.strip()) if isinstance(value, str) else value
    parts = [parts, parts] if isinstance(parts, int) else list(parts)
    try:
        size = [int(part) for part in parts]
    except (TypeError, ValueError):
        size = []
    if len(size) != 2 or min(size) < 1:
        raise UserError(f'image_size {value!r}: expected "224x224" or [224, 224]')
    return size


def extract_target_domains_from_config(config: dict[str, Any]) -> list[str]:
    """``"auto"`` is all but the source, a name a list of one; without the key, B, C and D."""
    targets = config.get("target_domains", ["domain_B", "domain_C", "domain_D"])
    if targets == "auto":
        return [domain for domain in DOMAINS if domain != config.get("source_domain", "domain_A")]
    return [targets] if isinstance(targets, str) else list(targets)


def args_of(condition: dict[str, Any], model: str) -> Args:
    """The options a condition asks for; an unknown name in it is refused."""
    known = {f.name for f in fields(Args)}
    values: dict[str, Any] = {"model": model, "condition": condition["name"]}
    for name, value in condition["config"].items():
        option = CONFIG_NAMES.get(name, name)
        if name in SPECIAL:
            values |= _special(name, value)
        elif option in known:
            values[option] = list(value) if isinstance(value, tuple) else value
        else:
            raise UserError(f"condition {condition['name']!r}: unknown config name {name!r}")
    if "image_size" in values:
        values["image_size"] = image_size_of(values["image_size"])
    values["target_domains"] = extract_target_domains_from_config(condition["config"])
    if "map_mode" in values and values["map_mode"] != "multiply":
        values["map_mode"] = "add"
    if values["model"] != model:
        raise UserError(f"condition {condition['name']!r} is for {values['model']}, this script trains {model}")
    return Args(**values)


def _special(name: str, value: Any) -> dict[str, Any]:
    if name == "pre_trained":
        return {} if value else {"weights": "random"}
    if isinstance(value, str):
        value = {"type": value}
    kinds = {"steplr": "step", "cosine": "cosine", "none": "constant", "constant": "constant", "multistep": "multistep"}
    kind = kinds.get(str(value.get("type", "constant")).lower())
    if kind is None:
        raise UserError(f"scheduler {value!r}: type must be one of {', '.join(kinds)}")
    names = {"step_size": "step_size", "gamma": "gamma", "warmup_epochs": "warmup_epochs"}
    return {"schedule": kind} | {names[k]: v for k, v in value.items() if k in names}


def at_demo_scale(args: Args) -> Args:
    """The same experiment small enough for a laptop: native map size, narrow or random networks, two epochs."""
    small: dict[str, Any] = {
        "image_size": DEMO_SIZE, "repair_width": 8, "segment_width": 8, "patch_width_range": [4, 16],
        "epochs": min(args.epochs or 2, 2), "batch_size": min(args.batch_size or 16, 16), "sample_images": 2,
        "learning_rate": args.learning_rate,
    }  # fmt: skip
    if not args.model.startswith("draem"):
        small |= {"backbone": "resnet18", "weights": args.weights or "random"}
    return replace(args, **small)
