"""Condition files of the experiments, turned into options. This file loads no torch."""

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from anomaly_lib.errors import UserError
from anomaly_lib.files import check_name, parse_json, read_text
from anomaly_lib.models.detectors.registry import entries, entry_of
from anomaly_lib.systems.detectors.hdmap.names import DOMAINS
from anomaly_lib.systems.detectors.hdmap.options import Args, Training, sizes_of_demo
from anomaly_lib.systems.detectors.options import options_of

TRAINING = frozenset(f.name for f in fields(Training))
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
    text = re.sub(r",(\s*[}\]])", r"\1", without_comments(read_text(path, "condition file")))
    content = parse_json(text, path)
    if isinstance(content, dict) and isinstance(content.get("experiment_conditions"), list):
        conditions = content["experiment_conditions"]
    elif isinstance(content, dict) and content and all(isinstance(c, dict) and "config" in c for c in content.values()):
        conditions = [{"name": name, **condition} for name, condition in content.items()]
    else:
        raise UserError(f"{path}: expected 'experiment_conditions': [...] or named objects that each have a 'config'")
    for number, condition in enumerate(conditions):
        _check(condition, f"{path}: condition {number}")
    names = [condition["name"] for condition in conditions]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: two conditions share a name")
    return conditions


def _check(condition: Any, where: str) -> None:
    """Refuse a condition without a name or a config, or with a name that cannot be a folder; complete the others."""
    if not (
        isinstance(condition, dict)
        and isinstance(condition.get("name"), str)
        and isinstance(condition.get("config"), dict)
    ):
        raise UserError(f"{where} needs a 'name' and a 'config'")
    name, config = condition["name"], condition["config"]
    check_name(name, f"{where}: ")
    if name in ("", ".", "..") or set(name) & set("/\\"):
        raise UserError(f"{where}: the name {name!r} is to be a folder; give one without slashes")
    null = [key for key, value in config.items() if value is None]
    if null:
        raise UserError(f"{where}: {null[0]} is null; give it a value or leave it out")
    condition.setdefault("description", "")
    for key in TUPLES:
        if key in config:
            pair = config[key]
            if not isinstance(pair, list) or [type(one) in (int, float) for one in pair] != [True, True]:
                raise UserError(f"{where}: {key} takes [from, to], got {config[key]!r:.60}")
            config[key] = tuple(config[key])


def get_experiment_by_name(conditions: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for condition in conditions:
        if condition["name"] == name:
            return condition
    raise UserError(f"no condition called {name!r}; there are {', '.join(c['name'] for c in conditions)}")


def image_size_of(value: Any) -> list[int]:
    """``"224x224"``, ``[256, 256]`` or ``224``."""
    parts = re.split(r"[x,\s]+", value.strip()) if isinstance(value, str) else value
    if isinstance(parts, bool):
        parts = ()
    try:
        size = [int(part) for part in ([parts, parts] if isinstance(parts, int) else parts)]
    except (TypeError, ValueError, OverflowError):
        size = []
    if len(size) != 2 or min(size) < 1:
        raise UserError(f'image_size {value!r}: expected "224x224" or [224, 224]')
    return size


def extract_target_domains_from_config(config: dict[str, Any]) -> list[str]:
    """``"auto"`` is all but the source, a name a list of one; without the key, B, C and D."""
    targets = config.get("target_domains", ["domain_B", "domain_C", "domain_D"])
    if targets == "auto":
        return [domain for domain in DOMAINS if domain != config.get("source_domain", "domain_A")]
    targets = [targets] if isinstance(targets, str) else targets
    if not targets or not isinstance(targets, (list, tuple)) or not all(isinstance(name, str) for name in targets):
        raise UserError(f"target_domains={targets!r:.60}: expected 'auto', a domain or a list of domains")
    return list(targets)


def option_names() -> dict[str, str]:
    """Name in a condition's config -> option, of all detectors that are known now."""
    return {
        spelling.lstrip("-").replace("-", "_"): f.name
        for entry in entries()
        for f in fields(options_of(Args, entry))
        for spelling in (f.name, *f.metadata["aliases"])
    }


def values_of(condition: dict[str, Any], model: str) -> dict[str, Any]:
    """The options that a condition sets, by their names here; an unknown name in it is refused."""
    values: dict[str, Any] = {"model": model, "condition": condition["name"]}
    known = option_names()
    for name, value in condition["config"].items():
        if name == "pre_trained":
            values |= {} if value else {"weights": "random"}
        elif name == "scheduler":
            values |= _schedule(value)
        elif name in known:
            values[known[name]] = list(value) if isinstance(value, tuple) else value
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
    if not isinstance(value, dict):
        raise UserError(f"scheduler {value!r:.60}: expected a name or an object with a 'type'")
    kind = SCHEDULES.get(str(value.get("type", "constant")).lower())
    if kind is None:
        raise UserError(f"scheduler {value!r}: type must be one of {', '.join(SCHEDULES)}")
    names = ("step_size", "gamma", "warmup_epochs", "milestones")
    return {"schedule": kind} | {name: value[name] for name in names if name in value}


def training_names(values: Mapping[str, Any]) -> list[str]:
    """What the template's common part sets for models that are trained, in a condition of one that is not."""
    known = {f.name for f in fields(options_of(Args, entry_of(values["model"])))}
    return sorted((TRAINING & set(values)) - known)


def args_of(values: Mapping[str, Any]) -> Args:
    """The options of an experiment from what its condition (and the command line) sets."""
    given = {name: value for name, value in values.items() if name not in training_names(values)}
    if given.get("scale", "demo" if given.get("data_path") is None else "full") == "demo":
        small = options_of(Args, entry_of(given["model"])).implied({"scale": "demo"})
        sizes = set(sizes_of_demo(entry_of(given["model"]))) - {"weights"}
        given = {name: value for name, value in given.items() if name not in sizes or _fewer(name, value, small)}
    return Args(**given)


def _fewer(name: str, value: Any, small: Mapping[str, Any]) -> bool:
    """At demo scale its own sizes count, but fewer epochs and smaller batches than its stay."""
    if type(value) is not type(small.get(name, value)):
        return True  # a value of another kind is for `Args` to refuse
    return name in ("epochs", "batch_size") and 0 < value < small[name]
