"""A checkpoint knows its run: in every system what goes on from one has its options, its data and its best model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_lib.command_line import parse
from anomaly_lib.config import given_options, to_plain
from anomaly_lib.engine.checkpoint import load_checkpoint, save_checkpoint
from anomaly_lib.engine.early_stop import EarlyStopping
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json, write_json
from anomaly_lib.systems.registry import SYSTEMS

EPOCHS: Mapping[str, dict[str, Any]] = {"detectors": {"model": "draem"}, "hdmap": {"model": "draem"}}
"""What makes a system train in epochs, where its tiny run does not."""
KEEPS = {"causal_film": "best_model.pth", "weld_supcon": "best_model.pth", "video_ae": "best_model.pt"} | {
    "crystal": "best_model.pt", "hdmap": "best_model.pt",
}  # fmt: skip
FAST = ("video_ae",)
QUIET: Mapping[str, Any] = {"figures": False, "cache": "ram"}


def quiet(built: Any) -> dict[str, Any]:
    return {name: value for name, value in QUIET.items() if hasattr(built, name)}


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
        resume=str(done.run_dir / "checkpoint.pt"), output_dir=str(tmp_path / "b"), **longer, **quiet(built)
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
        best = [torch.load(one / KEEPS[system], weights_only=True) for one in (done.run_dir, found.run_dir)]
        assert all(torch.equal(best[0]["model"][name], best[1]["model"][name]) for name in best[0]["model"])
    if system in set(KEEPS) - {"video_ae", "hdmap"}:  # whose decision and history are written into it at the end
        assert best[0]["epoch"] == best[1]["epoch"]
        assert (done.run_dir / KEEPS[system]).read_bytes() == (found.run_dir / KEEPS[system]).read_bytes()
    assert SYSTEMS[system].train(args).already_done


def images(root: Path) -> Path:
    """A class "nut" in the layout of MVTec AD: eight normal pictures to train on, two of each kind to test."""
    rng = np.random.default_rng(0)
    for place, count in {"train/good": 8, "test/good": 2, "test/crack": 2}.items():
        (root / "nut" / place).mkdir(parents=True)
        for number in range(count):
            picture = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(picture).save(root / "nut" / place / f"{number:03d}.png")
    return root


def test_a_finished_run_whose_data_have_changed_says_so(tmp_path: Path) -> None:
    data, system = images(tmp_path / "data"), SYSTEMS["detectors"]
    here: dict[str, Any] = {"dataset": "mvtec", "image_size": [32, 32], "coreset_size": 8}
    run = {**here, "output_dir": str(tmp_path / "run"), "data_path": str(data)}
    first = system.train(system.tiny(**run))
    assert system.train(system.tiny(**run)).already_done
    picture = data / "nut" / "test" / "good" / "000.png"
    content = picture.read_bytes()
    picture.write_bytes((data / "nut" / "test" / "good" / "001.png").read_bytes())
    with pytest.raises(UserError, match=r"run: was trained on other data than data_path=.*: .* fresh=True") as refused:
        system.train(system.tiny(**run))
    assert "\n" not in str(refused.value)
    picture.write_bytes(content)  # other times, the same bytes
    assert system.train(system.tiny(**run)).already_done
    moved = tmp_path / "moved"
    data.rename(moved)
    file = str(tmp_path / "run" / "checkpoint.pt")
    elsewhere = system.Args(resume=file, data_path=str(moved), output_dir=str(tmp_path / "b"), figures=False)
    assert system.train(elsewhere).metrics == first.metrics


def test_a_record_of_an_earlier_edition_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system = SYSTEMS["detectors"]
    run = {"output_dir": str(tmp_path / "run"), "data_path": str(images(tmp_path / "data")), "dataset": "mvtec"}
    run |= {"image_size": [32, 32], "coreset_size": 8}
    system.train(system.tiny(**run))
    record = read_json(tmp_path / "run" / "run.json")
    del record["fingerprint"]
    write_json(tmp_path / "run" / "run.json", record)
    assert system.train(system.tiny(**run)).already_done
    assert "does not say which data it was trained on" in capsys.readouterr().out


def test_what_was_given_is_known_in_python_as_on_the_command_line(tmp_path: Path) -> None:
    cls = SYSTEMS["video_ae"].Args
    (tmp_path / "some.json").write_text('{"batch_size": 4}')
    typed = parse(cls, ["--resume", "x.pt", "--epochs", "30", "--config", str(tmp_path / "some.json")])
    given = cls(resume="x.pt", epochs=30, batch_size=4)  # 30 is the default, and given all the same
    assert given_options(typed) == given_options(given) == {"resume", "epochs", "batch_size"}
    assert typed == given
