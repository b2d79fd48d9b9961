"""Condition files of the experiments, turned into options. This file loads no torch."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from anomaly_lib.errors import UserError
from anomaly_lib.models.detectors.configs import MEMORIES
from anomaly_lib.systems.detectors.hdmap.names import DOMAINS
from anomaly_lib.systems.detectors.hdmap.options import SIZES_OF_DEMO, Args
from anomaly_lib.systems.detectors.options import TRAINED

OPTIONS = {
    spelling.lstrip("-").replace("-", "_"): f.name
    for f in fields(Args)
    for spelling in (f.name, *f.metadata["aliases"])
}
"""Name in a condition's config -> option."""
TRAINING = frozenset(
    f.name for f in fields(Args) if f.metadata["needs"].get("model") == TRAINED or "schedule" in f.metadata["needs"]
)
"""What only models that are trained read."""
TUPLES = ("patch_width_range", "patch_ratio_range")
SCHEDULES = {"steplr": "step", "cosine": "cosine", "none": "constant", "constant": "constant", "multistep": "multistep"}


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


def values_of(condition: dict[str, Any], model: str) -> dict[str, Any]:
    """The options that a condition sets, by their names here; an unknown name in it is refused."""
    values: dict[str, Any] = {"model": model, "condition": condition["name"]}
    for name, value in condition["config"].items():
        if name == "pre_trained":
            values |= {} if value else {"weights": "random"}
        elif name == "scheduler":
            values |= _schedule(value)
        elif name in OPTIONS:
            values[OPTIONS[name]] = list(value) if isinstance(value, tuple) else value
        else:
            raise UserError(f"condition {condition['name']!r}: unknown config name {name!r}")
    if "image_size" in values:
        values["image_size"] = image_size_of(values["image_size"])
    values["target_domains"] = extract_target_domains_from_config(condition["config"])
    if "map_mode" in values and values["map_mode"] != "multiply":
        values["map_mode"] = "add"
    if values["model"] != model:
        raise UserError(f"condition {condition['name']!r} is for {values['model']}, this script trains {model}")
    return values


def _schedule(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = {"type": value}
    kind = SCHEDULES.get(str(value.get("type", "constant")).lower())
    if kind is None:
        raise UserError(f"scheduler {value!r}: type must be one of {', '.join(SCHEDULES)}")
    names = ("step_size", "gamma", "warmup_epochs", "milestones")
    return {"schedule": kind} | {name: value[name] for name in names if name in value}


def training_names(values: Mapping[str, Any]) -> list[str]:
    """What the template's common part sets for models that are trained, in a condition of one that is not."""
    return sorted(TRAINING & set(values)) if values["model"] in MEMORIES else []


def args_of(values: Mapping[str, Any]) -> Args:
    """The options of an experiment from what its condition (and the command line) sets."""
    given = {name: value for name, value in values.items() if name not in training_names(values)}
    if given.get("scale", "demo" if given.get("data_path") is None else "full") == "demo":
        small = Args.implied({"scale": "demo", "model": given["model"]})
        given = {name: value for name, value in given.items() if not _too_large(name, value, small)}
    return Args(**given)


def _too_large(name: str, value: Any, small: Mapping[str, Any]) -> bool:
    """At demo scale its own sizes count, but fewer epochs and smaller batches than its stay."""
    fewer = name in ("epochs", "batch_size") and 0 < value < small[name]
    return name in SIZES_OF_DEMO and not fewer
