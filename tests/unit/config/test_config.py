"""Every way a user may type an option reaches the same value; every mistake is one line and exit code 2."""

import json
from dataclasses import dataclass
from typing import Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_lib.config import Options, Switch, arg, command, normalise, override, parse, to_plain
from anomaly_lib.errors import TrainingFailure, UserError
from anomaly_lib.options import OptimArgs, RunArgs


@dataclass
class FusionArgs(Options):
    """Fusion."""

    fusion_mode: str = arg("max", "how scores are merged", choices=["max", "harmonic"])
    use_middle_fusion: Switch = arg(False, "inject text", aliases=["middle"])
    amp: Switch = arg(True, "mixed precision")
    layers: list[int] = arg([5, 8], "blocks to read")
    names: list[str] = arg(["a"], "names")
    k_shot: Optional[int] = arg(None, "images per class", type=int, aliases=["shot", "k"], at_least=1)
    gain: float = arg(1.0, "100% of it")


@dataclass
class Args(RunArgs, FusionArgs, OptimArgs):
    """A test system."""

    epochs: int = override(OptimArgs, "epochs", 3, aliases=["Epoch"])


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        ("--fusion-mode harmonic", "fusion_mode", "harmonic"),
        ("--fusion_mode harmonic", "fusion_mode", "harmonic"),
        ("--fusion_mode=harmonic", "fusion_mode", "harmonic"),
        ("--use_middle_fusion True", "use_middle_fusion", True),
        ("--use-middle-fusion=true", "use_middle_fusion", True),
        ("--use-middle-fusion", "use_middle_fusion", True),
        ("--use-middle-fusion --gain 2", "use_middle_fusion", True),
        ("--middle yes", "use_middle_fusion", True),
        ("--use_middle_fusion True --use-middle-fusion False", "use_middle_fusion", False),
        ("--no-amp", "amp", False),
        ("--no_amp", "amp", False),
        ("--amp False", "amp", False),
        ("--layers 2 3", "layers", [2, 3]),
        ("--layers 2,3", "layers", [2, 3]),
        ("--layers=2,3", "layers", [2, 3]),
        ("--layers -1 -2", "layers", [-1, -2]),
        ("--names x_y,z --gain 2", "names", ["x_y", "z"]),
        ("--shot 4", "k_shot", 4),
        ("--k 4", "k_shot", 4),
        ("--k_shot 4", "k_shot", 4),
        ("--Epoch 7", "epochs", 7),
        ("--num-epochs 7", "epochs", 7),
        ("--gain -0.5", "gain", -0.5),
        ("--lr 2e-5", "learning_rate", 2e-5),
        ("--save_path a_b/c_d.pth", "save_path", "a_b/c_d.pth"),
    ],
)
def test_spellings(argv: str, name: str, value: object) -> None:
    assert getattr(parse(Args, argv.split()), name) == value


def test_quoted_list_and_defaults_are_not_shared() -> None:
    assert parse(Args, ["--layers", "2, 3"]).layers == [2, 3]
    parse(Args, []).layers.append(99)
    assert parse(Args, []).layers == [5, 8]
    assert parse(Args, []).epochs == 3


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--fusion-mod harmonic", "did you mean --fusion-mode?"),
        ("--epoc 3", "did you mean --epochs?"),
        ("--fusion-mode harmonik", "choose from max, harmonic; did you mean harmonic?"),
        ("--amp maybe", "expected True or False"),
        ("--k-shot 0", "--k-shot 0: must be at least 1"),
        ("--k-shot two", "invalid int value"),
        ("stray", "unexpected argument"),
        ("--config missing.json", "missing.json: no such file"),
    ],
)
def test_mistakes_are_one_line(argv: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        parse(Args, argv.split(), prog="train")
    message = capsys.readouterr().err
    assert leaving.value.code == 2
    assert said in message
    assert message.count("\n") == 1
    assert message.startswith("train: ")


def test_config_file_is_overruled_by_flags(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"data": {"shot": 2}, "model": {"layers": [1], "amp": False}, "gain": None, "epoch": 9}))
    args = parse(Args, ["--epochs", "4", "--config", str(path)])
    assert (args.k_shot, args.layers, args.amp, args.gain, args.epochs) == (2, [1], False, 1.0, 4)
    path.write_text('{"fusionmode": 1}')
    with pytest.raises(SystemExit):
        parse(Args, ["--config", str(path)])
    assert "did you mean --fusion-mode?" in capsys.readouterr().err
    path.write_text("{nope")
    with pytest.raises(SystemExit):
        parse(Args, ["--config", str(path)])
    assert "not valid JSON" in capsys.readouterr().err


def test_print_config_round_trips(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as leaving:
        parse(Args, ["--layers", "7", "--print_config"])
    assert leaving.value.code == 0
    path = tmp_path / "c.json"
    path.write_text(capsys.readouterr().out)
    assert to_plain(parse(Args, ["--config", str(path)])) == to_plain(parse(Args, ["--layers", "7"]))


def test_help_shows_real_defaults_in_sections(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Args, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for piece in ("(default: max;", "(default: 5 8)", "100% of it", "--Epoch", "Fusion", "Optimisation"):
        assert piece in text
    assert "MISSING" not in text


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def body_raising(error: BaseException):  # type: ignore[no-untyped-def]
        def body(_: Args) -> None:
            raise error

        return command(Args, body, [], prog="p", description="d")

    assert command(Args, lambda args: args, [], prog="p", description="d") == 0
    assert command(Args, lambda args: args, ["--help"], prog="p", description="d") == 0
    assert command(Args, lambda args: args, ["--nope"], prog="p", description="d") == 2
    assert body_raising(UserError("x: missing")) == 2
    assert body_raising(TrainingFailure("diverged")) == 1
    assert body_raising(KeyboardInterrupt()) == 130
    assert "p: x: missing\n" in capsys.readouterr().err


def test_declaration_traps_are_named() -> None:
    @dataclass
    class Plain(Options):
        flag: bool = arg(False, "x")

    with pytest.raises(TypeError, match="Switch"):
        parse(Plain, [])
    with pytest.raises(TypeError, match="None"):
        arg(None, "x")


SPELLINGS = ["--fusion_mode", "--fusion-mode=max", "--no_amp", "--amp", "--layers", "--gain", "--unknown_x"]
WORDS = st.sampled_from([*SPELLINGS, "harmonic", "False", "2,3", "4", "-1.5", "a_b"])


@given(st.lists(WORDS, max_size=8))
@settings(deadline=None, max_examples=100)
def test_normalising_twice_changes_nothing(argv: list[str]) -> None:
    once = normalise(argv, Args)
    assert normalise(once, Args) == once
