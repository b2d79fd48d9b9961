"""python -m anomaly_lib: every command answers, and mistakes get one line and exit code 2."""

from pathlib import Path

import pytest

from anomaly_lib.__main__ import main


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


@pytest.mark.parametrize("argv", [["nope"], [], ["demo", "--system", "nothing"], ["cache", "shred"], ["list", "--x"]])
def test_mistakes_leave_with_two(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") <= 1


def test_check_counts_failures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from anomaly_lib.systems import registry as recipes

    monkeypatch.setattr(recipes, "RECIPES", {"broken": "no_such_module"})
    with pytest.raises(ModuleNotFoundError):
        recipes.recipe_of("broken")
    monkeypatch.setattr(recipes, "RECIPES", {"broken": "evaluation"})  # a module without a recipe in it
    assert main(["check"]) == 1
    assert "FAILED" in capsys.readouterr().out
