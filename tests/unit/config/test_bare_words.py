"""Words without an option name find their option, wherever they stand."""

from dataclasses import dataclass

import pytest

from anomaly_lib.bare_words import name_bare_words, split_bare_words
from anomaly_lib.command_line import parse
from anomaly_lib.config import Options, Switch, arg
from anomaly_lib.evaluation.options import PredictArgs


@dataclass
class Args(Options):
    """Every kind of option."""

    source: str = arg("", "first word")
    output: str = arg("", "second word", aliases=["-o"])
    loud: Switch = arg(False, "switch")
    sizes: list[int] = arg([1], "list")
    shift: float = arg(0.0, "number")
    device: str = arg("auto", "device")


@pytest.mark.parametrize(
    ("line", "source", "output"),
    [
        ("a b", "a", "b"),
        ("--loud a --shift -0.5 b", "a", "b"),
        ("--loud true a", "a", ""),
        ("a --no-loud b", "a", "b"),
        ("a -o b", "a", "b"),
        ("-o=b --sizes 2 3 --loud a", "a", "b"),
        ("a --sizes=2,3 b --gpu-id 0", "a", "b"),
        ("--gpu-id 0 a --use-cpu b", "a", "b"),
        ("--source a", "a", ""),
    ],
)
def test_words_fill_the_options_in_their_order(line: str, source: str, output: str) -> None:
    args = parse(Args, name_bare_words(line.split(), Args, ["source", "output"]))
    assert (args.source, args.output) == (source, output)
    assert args.sizes == ([2, 3] if "sizes" in line else [1])
    assert args.shift == (-0.5 if "shift" in line else 0)


def test_words_too_many_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Args, name_bare_words(["a", "b", "c"], Args, ["source", "output"]))
    assert "unexpected argument 'c'" in capsys.readouterr().err


def test_a_word_may_hold_blanks_and_commas() -> None:
    assert parse(Args, name_bare_words(["a, b c", "--loud"], Args, ["source"])).source == "a, b c"
    argv = ["--checkpoint", "x", "a, b.png", "--watch", "b", "--out=d", "--batch_size", "4", "c"]
    options = ["--checkpoint", "x", "--watch", "--out=d", "--batch_size", "4"]
    assert split_bare_words(argv, PredictArgs, values_of="input") == (options, ["a, b.png", "b", "c"])
    argv = ["--input", "a", "--overlays", "False", "--input=b c"]
    assert split_bare_words(argv, PredictArgs, values_of="input") == (["--overlays=False"], ["a", "b c"])
