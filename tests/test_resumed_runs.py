"""A checkpoint knows its run: in every system what goes on from one has its options, its data and its best model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from anomaly_lib.config import to_plain
from anomaly_lib.engine.checkpoint import load_checkpoint, save_checkpoint
from anomaly_lib.engine.early_stop import EarlyStopping
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json
from anomaly_lib.systems.registry import SYSTEMS

EPOCHS: Mapping[str, dict[str, Any]] = {"detectors": {"model": "draem"}, "hdmap": {"model": "draem"}}
"""What makes a system train in epochs, where its tiny run does not."""
KEEPS = {"causal_film": "best_model.pth", "weld_supcon": "best_model.pth", "video_ae": "best_model.pt"} | {
    "crystal": "best_model.pt", "hdmap": "best_model.pt",
}  # fmt: skip
FAST = ("video_ae",)
QUIET: Mapping[str, Any] = {"figures": False, "cache": "ram"}


def quiet(system: str) -> dict[str, Any]:
    known = to_plain(SYSTEMS[system].tiny())
    return {name: value for name, value in QUIET.items() if name in known}


def checkpoint_of(system: str, path: Path, **extra: Any) -> Path:
    """A file that says it was trained with the system's tiny options; nothing was."""
    head = {"args": to_plain(SYSTEMS[system].tiny()), "epoch": 1, "extra": extra, "best": {}, "history": []}
    return save_checkpoint(path, head, system=system)


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_other_options_are_refused_in_one_line(system: str, tmp_path: Path) -> None:
    path = checkpoint_of(system, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=r"checkpoint\.pt: .*\(.*seed=\d+ -> 7.* is refused\)"):
        SYSTEMS[system].train(
            SYSTEMS[system].Args(resume=str(path), output_dir=str(tmp_path / "b"), seed=7, batch_size=77)
        )
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_other_data_and_other_systems_are_refused_in_one_line(system: str, tmp_path: Path) -> None:
    path = checkpoint_of(system, tmp_path / "checkpoint.pt", fingerprint="of other data")
    again = SYSTEMS[system].Args(resume=str(path), output_dir=str(tmp_path / "b"))
    with pytest.raises(UserError, match=r"checkpoint\.pt: was trained on other data than the built-in data") as refused:
        SYSTEMS[system].train(again)
    assert "\n" not in str(refused.value)
    checkpoint_of(next(other for other in sorted(SYSTEMS) if other != system), path)
    with pytest.raises(UserError, match=rf"checkpoint\.pt: a checkpoint of .*, but '{system}' was expected"):
        SYSTEMS[system].train(again)


@pytest.mark.parametrize(
    "system", [pytest.param(one, marks=[] if one in FAST else pytest.mark.slow) for one in sorted(SYSTEMS)]
)
def test_a_run_goes_on_elsewhere_with_its_options_and_its_best_model(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = SYSTEMS[system].tiny(output_dir=str(tmp_path / "a"), **EPOCHS.get(system, {}))
    done = SYSTEMS[system].train(built)
    monkeypatch.setattr(EarlyStopping, "improved", lambda *_: False)  # what follows is never better
    longer = {} if system == "crystal" else {"epochs": built.epochs + 1}  # its one-cycle schedule has a fixed length
    args = SYSTEMS[system].Args(
        resume=str(done.run_dir / "checkpoint.pt"), output_dir=str(tmp_path / "b"), **longer, **quiet(system)
    )
    found = SYSTEMS[system].train(args)
    record, said = read_json(found.run_dir / "run.json"), capsys.readouterr().out
    kept = to_plain(built) | longer
    places = {"output_dir", "resume", *QUIET}
    assert {k: v for k, v in record["args"].items() if k not in places} == {
        k: v for k, v in kept.items() if k not in places
    }
    assert (f"resume: epochs {built.epochs} -> {built.epochs + 1}" if longer else "resume: with the options") in said
    last = load_checkpoint(found.run_dir / "checkpoint.pt")
    assert [row["epoch"] for row in last["history"]] == list(range(built.epochs + len(longer)))
    assert last["extra"]["fingerprint"] == record["fingerprint"]["content"]
    if system in KEEPS:
        assert found.checkpoint == found.run_dir / KEEPS[system]
    if system in set(KEEPS) - {"video_ae"}:  # the loss of an auto-encoder falls by itself
        best = [torch.load(one / KEEPS[system], weights_only=True)["epoch"] for one in (done.run_dir, found.run_dir)]
        assert best[0] == best[1]
        assert (done.run_dir / KEEPS[system]).read_bytes() == (found.run_dir / KEEPS[system]).read_bytes()
    assert SYSTEMS[system].train(args).already_done
