"""python -m anomaly_lib: every command answers, and mistakes get one line and exit code 2."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from anomaly_lib.__main__ import main
from anomaly_lib.commands import looking
from anomaly_lib.commands.looking import DEMO_WRITERS
from anomaly_lib.systems.registry import LazySystem, Registry
from anomaly_lib.types import RunResult


def test_list_and_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "harmonic" in capsys.readouterr().out
    assert main(["info"]) == 0
    assert "torch" in capsys.readouterr().out


def test_demo_writes_real_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", str(tmp_path), "--system", "crystal", "--seed", "3"]) == 0
    assert any(path.is_file() for path in tmp_path.rglob("*"))
    assert str(tmp_path) in capsys.readouterr().out


def test_cache_info_and_clear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "info", "--cache-dir", str(tmp_path)]) == 0
    assert "nothing cached" in capsys.readouterr().out
    assert main(["cache", "clear", "--cache-dir", str(tmp_path)]) == 0
    assert "0.0 MiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        ["nope"],
        ["train", "promptad"],
        ["fit"],
        ["fit", "--model", "sowa"],
        ["fit", "no_such_folder"],
        ["demo", "--system", "nothing"],
        ["cache", "shred"],
        ["list", "--x"],
        ["info", "x"],
        ["demo", "a", "b"],
        ["check", "nothing"],
    ],
)
def test_mistakes_leave_with_two(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") <= 1


def test_a_mistake_names_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "padim"]) == 2
    assert capsys.readouterr().err.endswith("it is a model: python -m anomaly_lib fit FOLDER --model padim\n")
    assert main(["fti", "parts"]) == 2
    assert capsys.readouterr().err.endswith("did you mean fit?\n")


def test_a_figure_without_a_value_is_no_difference() -> None:
    from anomaly_lib.evaluation.evaluate import same

    assert same(float("nan"), float("nan"))
    assert not same(float("nan"), 0.5)
    assert not same(0.5, 0.6)


def test_bare_words_stand_anywhere(tmp_path: Path) -> None:
    for argv in (["--system", "crystal", str(tmp_path / "a")], [str(tmp_path / "b"), "--system=crystal"]):
        assert main(["demo", *argv]) == 0
    written = [sorted(p.relative_to(tmp_path / x) for p in (tmp_path / x).rglob("*")) for x in "ab"]
    assert written[0] == written[1]
    assert written[0]


def test_demo_writers_are_there() -> None:
    for place, _ in DEMO_WRITERS.values():
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", ["evaluate", "export"])
def test_a_bare_word_is_the_checkpoint(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--device", "cpu", "no/such.pt"]) == 2
    assert "no/such.pt: no such" in capsys.readouterr().err


class Whole(LazySystem):
    """A system that answers without doing anything."""

    def tiny(self, **changes: Any) -> Any:
        return changes

    def train(self, args: Any) -> RunResult:
        return RunResult(run_dir=Path(args["output_dir"]), metrics={"auroc": 0.75}, checkpoint=Path("x.pt"))


def test_check_counts_failures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    systems = Registry(LazySystem("broken", "no_such_package"), Whole("whole", ""))
    monkeypatch.setattr(looking, "SYSTEMS", systems)
    monkeypatch.setattr(Registry, "load", lambda self, path: path)
    assert main(["check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "broken: FAILED (ModuleNotFoundError" in lines[0]
    assert lines[1].strip().startswith("whole: ok")
    assert "(auroc 0.750)" in lines[1]
