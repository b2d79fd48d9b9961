"""Every way a user may type an option reaches the same value; every mistake is one line and exit code 2."""

import json
import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_lib.command_line import as_flags, command, normalise, parse
from anomaly_lib.config import Options, Preset, Switch, arg, override, result_options, to_plain
from anomaly_lib.errors import OptionError, TrainingFailure, UserError
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


@dataclass
class Rated(Options):
    """Options that depend on each other."""

    PRESETS: ClassVar[tuple[Preset, ...]] = (
        Preset(when={"protocol": "paper"}, then={"gamma": 0.5, "sizes": [1, 2]}),
        Preset(when={"model": ("b", "c")}, then={"width": 7}, unless=("name",)),
    )
    protocol: str = arg("clean", "protocol", choices=["clean", "paper"])
    model: str = arg("a", "model", choices=["a", "b", "c"])
    name: Optional[str] = arg(None, "name", type=str)
    schedule: str = arg("constant", "curve", choices=["constant", "step"])
    gamma: float = arg(0.1, "factor", at_least=0, needs={"schedule": "step"})
    width: int = arg(3, "width", at_least=1)
    sizes: list[int] = arg([4, 5], "sizes", length=2)
    rate: float = arg(1.0, "rate")

    def check(self) -> None:
        if self.width > 100 and self.model == "a":
            raise OptionError(f"width={self.width}: too wide for model={self.model}")


def test_presets_fill_what_is_not_given_in_python_as_on_the_command_line() -> None:
    for kwargs, argv in (
        ({}, ""),
        ({"protocol": "paper"}, "--protocol paper"),
        ({"protocol": "paper", "gamma": 0.5, "schedule": "step"}, "--protocol paper --gamma 0.5 --schedule step"),
        ({"model": "c"}, "--model c"),
        ({"model": "c", "width": 9}, "--model c --width 9"),
        ({"model": "b", "name": "x"}, "--model b --name x"),
    ):
        assert Rated(**kwargs) == parse(Rated, argv.split())
    assert (Rated(protocol="paper").gamma, Rated(protocol="paper").sizes) == (0.5, [1, 2])
    assert Rated(model="b").width == 7
    assert FusionArgs(layers=7).layers == FusionArgs(layers=(7,)).layers == [7]  # type: ignore[arg-type]
    assert Rated(model="b", name="x").width == 3
    Rated(protocol="paper").sizes.append(9)
    assert Rated(protocol="paper").sizes == [1, 2]
    changed = replace(Rated(protocol="paper"), rate=2.0)  # all fields are given: presets have nothing left to say
    assert (changed.gamma, changed.rate) == (0.5, 2.0)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"protocol": "papr"}, "protocol=papr: choose from clean, paper; did you mean paper?"),
        ({"widht": 3}, "has no option 'widht'; did you mean width?"),
        ({"width": 0}, "width=0: must be at least 1"),
        ({"width": 2.5}, "width=2.5: takes a whole number"),
        ({"width": True}, "width=True: takes a whole number"),
        ({"width": None}, "width=None: takes a whole number"),
        ({"width": 10**20}, "too large"),
        ({"rate": float("nan")}, "rate=nan: must be a finite number"),
        ({"rate": float("inf")}, "rate=inf: must be a finite number"),
        ({"rate": "fast"}, "rate='fast': takes a number"),
        ({"sizes": 3}, "sizes=3: takes 2 values, got 1"),
        ({"sizes": [1, 2, 3]}, "sizes=1 2 3: takes 2 values, got 3"),
        ({"width": 200}, "width=200: too wide for model=a"),
        ({"gamma": 0.3}, "gamma=0.3: has no effect without schedule=step"),
    ],
)
def test_python_and_argv_refuse_alike(kwargs: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        Rated(**kwargs)
    assert "\n" not in str(refused.value)
    ((name, value),) = kwargs.items()
    if value is None or isinstance(value, bool):
        return
    words = [str(one) for one in value] if isinstance(value, list) else [str(value)]
    with pytest.raises(SystemExit) as leaving:
        parse(Rated, [f"--{name}", *words])
    assert leaving.value.code == 2
    assert f"--{name}" in capsys.readouterr().err


@dataclass
class Part(Options):
    """A module's own options, which know of a choice that only a program over several modules has."""

    depth: int = arg(2, "depth", needs={"model": "b"})


@dataclass
class Whole(Part):
    """The program."""

    model: str = arg("a", "model", choices=["a", "b"])


def test_what_an_option_needs_may_be_known_to_a_derived_class_only() -> None:
    assert Part(depth=3).depth == Whole(depth=3, model="b").depth == 3
    with pytest.raises(OptionError, match=r"^depth=3: has no effect without model=b$"):
        Whole(depth=3)


def test_messages_of_arguments_become_flags() -> None:
    text = "data_path=a=b: no such folder; give data_path= or weights=FILE (x=1 is no option, n_rate=2 neither)"
    names = as_flags(text, DataLike)
    assert names == (
        "--data-path a=b: no such folder; give --data-path or --weights FILE (x=1 is no option, n_rate=2 neither)"
    )


@dataclass
class DataLike(Options):
    """Data."""

    data_path: Optional[str] = arg(None, "folder", type=str)
    weights: Optional[str] = arg(None, "file", type=str)
    device: str = arg("auto", "device", result=False)
    precision: str = arg("fp32", "format")


@dataclass
class Elsewhere(DataLike):
    """Data on a device of its own."""

    device: str = override(DataLike, "device", "cuda")


def test_what_is_no_part_of_a_result_is_declared_with_the_option() -> None:
    assert result_options(Elsewhere()) == {"data_path": None, "weights": None, "precision": "fp32"}
    assert to_plain(Elsewhere())["device"] == "cuda"


def test_spellings_of_the_originals_are_translated() -> None:
    assert parse(DataLike, ["--gpu-id", "2"]).device == "cuda:2"
    assert parse(DataLike, ["--gpu_id=1"]).device == "cuda:1"
    assert parse(DataLike, ["--use-cpu", "True", "--mixed-precision"]).device == "cpu"
    assert parse(DataLike, ["--use-cpu", "False"]).device == "auto"
    assert parse(DataLike, ["--mixed_precision"]).precision == "bf16"


SPELLINGS = ["--fusion_mode", "--fusion-mode=max", "--no_amp", "--amp", "--layers", "--gain", "--unknown_x"]
WORDS = st.sampled_from([*SPELLINGS, "harmonic", "False", "2,3", "4", "-1.5", "a_b"])


@given(st.lists(WORDS, max_size=8))
@settings(deadline=None, max_examples=100)
def test_normalising_twice_changes_nothing(argv: list[str]) -> None:
    once = normalise(argv, Args)
    assert normalise(once, Args) == once
