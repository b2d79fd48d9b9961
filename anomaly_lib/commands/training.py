"""Commands that train: `fit FOLDER` for a detector of your own images, `train NAME` for every published system."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar

from anomaly_lib.command_line import PROGRAM, command
from anomaly_lib.config import Options, arg, override
from anomaly_lib.errors import UserError
from anomaly_lib.systems.detectors.options import Args as DetectorArgs
from anomaly_lib.systems.promptad.options import Args as PromptADArgs
from anomaly_lib.systems.promptad.options import SegArgs
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.systems.sowa.options import Args as SOWAArgs
from anomaly_lib.types import RunResult

TRAINERS = {
    "promptad-cls": ("promptad", "PromptAD, image level (few-shot, CLIP)"),
    "promptad-seg": ("promptad", "PromptAD, pixel level (few-shot, CLIP)"),
    "sowa": ("sowa", "SOWA: window attention on a frozen CLIP"),
    "detector": ("detectors", "a detector on one class of any data set; --model NAME --help shows its options"),
    "hdmap": ("hdmap", "a detector on one HDMAP domain, tested on the others"),
    "causal-film": ("causal_film", "Causal-FiLM for weld inspection: video, sound, sensors, photographs"),
    "supcon": ("weld_supcon", "the V4 quad-modal weld model"),
    "video-ae": ("video_ae", "the video auto-encoder of late fusion"),
    "crystal": ("crystal", "a crystal property model on structure and text: ALIGNN with three fusions"),
}
"""Name -> system, and what is trained. Without options each trains on built-in data."""


def options_of(name: str) -> type[Options]:
    return SegArgs if name == "promptad-seg" else SYSTEMS[TRAINERS[name][0]].Args


def train_main(name: str, argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Parse, train, leave with an exit code: the body of `train NAME` and of the script of that system."""
    system, what = TRAINERS[name]
    prog = prog or f"{PROGRAM} train {name}"
    return command(options_of(name), SYSTEMS[system].train, argv, prog=prog, description=f"Train {what}")


# -- fit ------------------------------------------------------------------------------------------------------------


@dataclass
class FitArgs(DetectorArgs):
    """A detector of your own images."""

    dataset: str = override(DetectorArgs, "dataset", "folder", help="layout: folder = good/ and bad/, mvtec ...")


@dataclass
class FitPromptAD(PromptADArgs):
    """PromptAD on your own images."""

    CHOOSES: ClassVar[Sequence[str]] = ("model",)
    model: str = arg("promptad", "which detector", choices=["promptad"], result=False)
    dataset: str = override(PromptADArgs, "dataset", "folder")


@dataclass
class FitSOWA(SOWAArgs):
    """SOWA on your own images."""

    CHOOSES: ClassVar[Sequence[str]] = ("model",)
    model: str = arg("sowa", "which detector", choices=["sowa"], result=False)
    dataset: str = override(SOWAArgs, "dataset", "folder")


FITTING: dict[str, type[Options]] = {"promptad": FitPromptAD, "sowa": FitSOWA}
"""Systems whose name is a model of `fit`, beside the registered detectors."""


def fitting_options(argv: Sequence[str]) -> type[Options]:
    """The options of `fit` with the model that the words name."""
    model = ""
    for word, after in zip_longest(argv, argv[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        model = (value if equals else after) if name == "--model" else model
    return FITTING.get(model, FitArgs)


def fit(args: FitArgs) -> RunResult:
    """Train on the folder; the run says what it found, what it decides, and what to do next."""
    if args.data_path is None and args.dataset == "folder" and args.resume is None:
        raise UserError(
            f"give a folder of images: {PROGRAM} fit FOLDER, with good/ and bad/ in it, or nothing but good images "
            f"({PROGRAM} demo parts writes some to try it with)"
        )
    system = args.model if args.model in FITTING else "detectors"
    return SYSTEMS[system].train(args)
