"""Option values that no work can be done with are refused in one line, before minutes are spent on it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from anomaly_lib.errors import UserError
from tests.fuzz.oracle import program
from tests.fuzz.programs import main_of

ROOT = Path(__file__).resolve().parents[1]
TINY = ("--backbone", "tiny-clip", "--weights", "random", "--epochs", "1", "--no-figures", "--cache", "ram")


@pytest.mark.parametrize(
    "words",
    [
        "--states {0}", "--n-ctx 500", "--n-pro 100000", "--image-size 1", "--resolution 1", "--device mps",
        "--device cuda:99", "--device gpu", "--lambda1 nan", "--lambda1 inf", "--learning-rate -inf",
        "--reader-resize 1000000000", "--seed 99999999999999999999", "--seed -1", "--shot 0", "--epochs -1",
    ],
)  # fmt: skip
def test_promptad_refuses(words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        program(main_of("train_cls"), *TINY, *words.split(), "--output-dir", tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert words.split()[0] in str(refused.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("scripts.sowa.train_sowa", "--sigma nan"),
        ("scripts.sowa.train_sowa", "--adapter linaer"),
        ("scripts.train_detector", "--image-size 1"),
        ("scripts.train_detector", "--coreset-ratio inf"),
        ("train_with_cross_modal_attention", "--batch-size 99999999999999999999"),
        ("train_causal_film", "--weight-decay nan"),
    ],
)
def test_the_others_refuse(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words.split()[0]):
        program(main_of(name), *words.split(), "--output-dir", tmp_path / "run")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals of POSIX")
def test_a_signal_while_options_are_read_is_an_interruption() -> None:
    code = (
        "import os, signal, threading, anomaly_lib.command_line as c\n"
        "original = c.parse\n"
        "def parse(*a, **k):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return original(*a, **k)\n"
        "c.parse = parse\n"
        "import train_cls, sys; sys.exit(train_cls.main(['--epochs', '1']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "interrupted (SIGTERM" in done.stderr) == (130, True), done.stderr


def test_a_cache_that_is_deleted_while_it_is_filled_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anomaly_lib.backbones.clip import ClipBackbone

    original = ClipBackbone.encode

    def encode(self: ClipBackbone, *args: object, **more: object) -> object:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        return original(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ClipBackbone, "encode", encode)
    words = ("--epochs", "1", "--no-figures", "--cache", "disk", "--cache-dir", tmp_path / "cache")
    with pytest.raises(UserError, match=r"feature cache .*: cannot be written"):
        program(main_of("train_cls"), *words, "--output-dir", tmp_path / "run")
