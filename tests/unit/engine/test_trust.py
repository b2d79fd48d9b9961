"""What a run does with files that are not what they should be, and with an operating system that says no."""

import errno
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from anomaly_lib.command_line import command
from anomaly_lib.engine.checkpoint import load_checkpoint
from anomaly_lib.engine.words import told_each_epoch
from anomaly_lib.errors import UserError
from anomaly_lib.files import atomic_file
from anomaly_lib.options import RunArgs
from tests.support.tiny_recipe import Args, train


def trained(folder: Path) -> Path:
    train(Args(epochs=2, output_dir=str(folder)))
    return folder / "checkpoint.pt"


@pytest.mark.parametrize("part", ["model", "optimizer", "ema"])
def test_resuming_from_a_file_without_a_part_is_refused(part: str, tmp_path: Path) -> None:
    path = trained(tmp_path / "run")
    content = torch.load(path, weights_only=True)
    torch.save(content | {part: None}, tmp_path / "lacks.pt")
    with pytest.raises(UserError, match=rf"lacks\.pt: has no {part} to go on from"):
        train(Args(epochs=3, output_dir=str(tmp_path / "other"), resume=str(tmp_path / "lacks.pt")))


def test_resuming_from_weights_of_other_sizes_is_one_line(tmp_path: Path) -> None:
    path = trained(tmp_path / "run")
    content = torch.load(path, weights_only=True)
    content["model"]["0.weight"] = torch.zeros(3, 3)
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=r"odd\.pt: its model does not fit these options") as refused:
        train(Args(epochs=3, output_dir=str(tmp_path / "other"), resume=str(tmp_path / "odd.pt")))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("head", [{"format": "1"}, {"args": [1]}, {"extra": 3}, {"epoch": "two"}, {"system": 7}])
def test_odd_heads_are_refused(head: dict[str, Any], tmp_path: Path) -> None:
    content = {"format": 1, "system": "tiny", "args": {}, "extra": {}, "epoch": 1, "model": {}}
    torch.save(content | head, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=r"odd\.pt: not a checkpoint that this library writes"):
        load_checkpoint(tmp_path / "odd.pt")


@pytest.mark.parametrize("record", ["null", "[]", "{}", '{"system": "tiny", "status": 3, "args": {}, "metrics": {}}'])
def test_an_odd_record_is_one_line(record: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(record)
    with pytest.raises(UserError, match=r"run\.json: not the record of a run"):
        train(Args(epochs=1, output_dir=str(tmp_path)))


def test_killed_before_the_first_checkpoint_no_epoch_is_listed_twice(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0}\n' * 5)
    train(Args(epochs=2, output_dir=str(tmp_path), save_every=5))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1]


def test_leftovers_of_killed_writes_are_removed_by_the_next_run(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.pt.abc.tmp").write_bytes(b"half")
    trained(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_an_epochs_line_keeps_loss_rate_and_what_selects() -> None:
    values = {f"part{i}": 1.0 for i in range(12)} | {"loss": 2.0, "lr": 0.1, "val_auroc": 0.9}
    assert told_each_epoch(values) == [*(f"part{i}" for i in range(5)), "loss", "lr", "val_auroc"]
    assert told_each_epoch({"loss": 1.0}) == ["loss"]


@dataclass
class Folder(RunArgs):
    """A program that writes."""


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "--output-dir"), (errno.ENAMETOOLONG, "shorter name")],
)
def test_what_the_system_refuses_is_one_line_with_its_remedy(
    number: int, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(_: Folder) -> None:
        raise OSError(number, "refused", "some/file")

    assert command(Folder, body, [], prog="p", description="d") == 2
    said = capsys.readouterr().err
    assert said.startswith("p: some/file: refused (")
    assert remedy in said
    assert said.count("\n") == 1


def test_a_file_where_a_folder_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")

    def body(args: Folder) -> None:
        with atomic_file(Path(str(args.output_dir)) / "inner" / "x.txt", "w") as stream:
            stream.write("x")

    assert command(Folder, body, ["--output-dir", str(tmp_path / "file")], prog="p", description="d") == 2
    said = capsys.readouterr().err
    assert "--output-dir" in said
    assert said.count("\n") == 1
