"""Every option of every system acts, is refused in one line, or is announced: one tiny run a value, compared.

`CONTEXT` says beside which other options an option is tried (what it needs, or what makes its effect visible at tiny
size); `ELSEWHERE` lists the few whose effect is no part of a run's outcome, with the test that shows it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from anomaly_lib.systems.registry import SYSTEMS
from tests.support.acting import another_value, options_of, outcome_of

ELSEWHERE = {
    "fresh": "tests/unit/engine/test_engine.py: a finished run is started over",
    "resume": "tests/e2e/test_resume.py: a run goes on from another file",
    "save_every": "tests/unit/engine/test_engine.py: how often a checkpoint is written, not what is in the last one",
    "num_workers": "decoding threads and processes: how fast, not what",
    "on_error": "tests/unit/data/test_readers.py: damaged files, of which built-in data have none",
    "download": "tests/unit/backbones/test_resolution.py: what happens where weights are missing",
    "cache": "tests/e2e/test_cache_features.py: where features lie, not what they are",
    "cache_dir": "tests/e2e/test_cache_features.py",
    "device": "tests/unit/engine/test_engine.py: a device that is not there is refused",
    "compile": "tests/unit/models/test_crystal_models.py: how fast, not what (and the compiler takes minutes)",
    "tensorboard": "files of another program",
    "wandb": "another program's run",
    "wandb_project": "another program's run",
    "wandb_name": "another program's run",
}
CONTEXT: dict[tuple[str, str], tuple[dict[str, Any], Any]] = {
    ("crystal", "text_max_tokens"): ({"cross_modal_tokens": True}, 4),
    ("crystal", "warmup_steps"): ({}, 1),  # the default is longer than a tiny run
    ("crystal", "early_stopping_patience"): ({"epochs": 4, "learning_rate": 0.3}, 1),
}
"""(system, option) -> (options beside it, the value to try)."""


@pytest.mark.slow
@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_every_option_acts_or_is_refused_or_announced(system: str, tmp_path: Path) -> None:
    bases: dict[str, Any] = {}

    def base(context: Mapping[str, Any]) -> Any:
        key = repr(sorted(context.items()))
        if key not in bases:
            bases[key] = outcome_of(system, tmp_path / f"base{len(bases)}", context)
            assert bases[key].refused is None, bases[key].refused
        return bases[key]

    silent = []
    for f in options_of(system):
        if f.name in ELSEWHERE or f.name == "output_dir":
            continue
        beside, value = CONTEXT.get((system, f.name), ({}, None))
        if value is None:
            value = another_value(f, getattr(SYSTEMS[system].tiny(**beside), f.name))
        found = outcome_of(system, tmp_path / f.name, {**beside, f.name: value})
        if found.refused is not None:
            assert f.name in found.refused or f.name.replace("_", " ") in found.refused, (f.name, found.refused)
            assert "\n" not in found.refused
        elif f"{f.name}=" in found.said and "no meaning" in found.said:
            continue
        elif found.content == base(beside).content:
            silent.append(f"{f.name}={value}")
    assert not silent
