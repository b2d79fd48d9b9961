"""Options of the registered detectors: shared ones, and those of the ``model`` chosen. This file loads no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Optional

from anomaly_lib.config import ANY, Options, Preset, Switch, arg, default_of, override, shown
from anomaly_lib.errors import OptionError
from anomaly_lib.models.detectors.registry import Entry, entries, entry_of, load_plugin
from anomaly_lib.options import (
    SCHEDULES,
    BackboneArgs,
    CacheArgs,
    DataArgs,
    DecisionArgs,
    EvalArgs,
    HoldOutArgs,
    OptimArgs,
    RunArgs,
    TileArgs,
    TrackArgs,
)

DEFAULT = "patchcore"


@dataclass
class FrozenArgs(BackboneArgs, CacheArgs):
    """The frozen network, whose features are kept."""


@dataclass
class TrainingArgs(Options):
    """Training in epochs."""

    epochs: int = override(OptimArgs, "epochs")
    learning_rate: float = override(OptimArgs, "learning_rate")
    weight_decay: float = override(OptimArgs, "weight_decay")
    grad_clip: float = override(OptimArgs, "grad_clip")
    optimizer: str = arg("adam", "optimizer", choices=["adam", "adamw", "sgd"])
    momentum: float = arg(0.9, "momentum of sgd; first beta of adam and adamw", at_least=0, at_most=0.999)
    schedule: str = arg(
        "constant",
        "learning-rate curve over the epochs",
        choices=[name for name in SCHEDULES if name != "plateau"],
    )
    warmup_epochs: int = arg(0, "epochs of linear warm-up", at_least=0)
    step_size: int = arg(10, "epochs between drops", at_least=1, needs={"schedule": "step"})
    milestones: list[int] = arg([], "epochs of the drops", type=int, at_least=1, needs={"schedule": "multistep"})
    gamma: float = arg(0.1, "factor of a drop", at_least=0, needs={"schedule": ("step", "multistep")})
    early_stopping_patience: int = arg(
        0, "epochs without a better validation AUROC before stopping; 0 = never", at_least=0, resumable=True
    )
    precision: str = override(RunArgs, "precision")

    def check(self) -> None:
        if self.schedule == "multistep" and not self.milestones:
            raise OptionError("schedule=multistep: give the epochs of its drops as milestones=")


@dataclass
class ModelArgs(Options):
    """The detector."""

    CHOOSES: ClassVar[Sequence[str]] = ("model", "plugin")
    TRAINING: ClassVar[type[Options]] = TrainingArgs
    model: str = arg(
        DEFAULT,
        f"which detector: {', '.join(entry.name for entry in entries())}, one of plugin= or of a package",
    )
    plugin: Optional[str] = arg(
        None, "Python file that registers a detector of your own; it is run", type=str, result=False
    )
    image_size: list[int] = arg([256, 256], "height and width of what it sees; one number = a square", at_least=8)

    def check(self) -> None:
        if len(self.image_size) not in (1, 2):
            raise OptionError(f"image_size={shown(self.image_size)}: takes one or two numbers")
        self.image_size = (self.image_size * 2)[:2]
        widths = getattr(self, "patch_width_range", None)
        if widths and widths[1] >= min(*self.image_size, getattr(self, "tile", 0) or widths[1] + 1):
            raise OptionError(
                f"patch_width_range={shown(widths)}: does not fit image_size={shown(self.image_size)}; lower it"
            )

    @classmethod
    def variant(cls, given: Mapping[str, Any]) -> type[Options]:
        """This class with the options of the model that is chosen."""
        if given.get("plugin"):
            load_plugin(given["plugin"])
        root = getattr(cls, "ROOT", cls)
        return options_of(root, entry_of(given.get("model", getattr(cls, "MODEL", DEFAULT))))

    @classmethod
    def saved_variant(cls, saved: Mapping[str, Any]) -> type[Options]:
        return cls.variant({"model": str(saved.get("model", DEFAULT))})  # what a file says of a plugin is never run

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> Any:
        return super().from_saved({name: value for name, value in saved.items() if name != "plugin"})

    @classmethod
    def foreign(cls, name: str) -> str | None:
        owners = [entry.name for entry in entries() if name in spellings(options_of(cls.root(), entry))]
        return f"only for model={'|'.join(owners)}" if owners else None

    @classmethod
    def root(cls) -> "type[ModelArgs]":
        """The class this one is a variant of."""
        return getattr(cls, "ROOT", cls)

    @classmethod
    def parts_of(cls, entry: Entry) -> list[type[Options]]:
        """The groups of options that one detector has beside its own and those of all."""
        return [*([cls.TRAINING] if entry.trained else []), *([FrozenArgs] if entry.frozen else [])]

    @classmethod
    def presets_of(cls, entry: Entry) -> tuple[Preset, ...]:  # noqa: ARG003 - of the programs that have some
        """What this program presets for one detector, after the detector's own presets."""
        return ()


@dataclass
class DetectorArgs(RunArgs, TrackArgs, DataArgs, ModelArgs):
    """What every program that trains these detectors takes."""

    CHOOSES: ClassVar = ("model", "plugin", "resume")
    batch_size: int = override(OptimArgs, "batch_size", 32, help="images a step, or encoded together")
    protocol: str = override(EvalArgs, "protocol")
    figures: Switch = override(EvalArgs, "figures")

    @classmethod
    def variant(cls, given: Mapping[str, Any]) -> type[Options]:
        """This class with the options of the model that is chosen, or is in the file that a run goes on from."""
        resume = given.get("resume")
        if "model" not in given and resume and Path(resume).is_file():
            from anomaly_lib.engine.checkpoint import load_checkpoint

            saved = load_checkpoint(resume, lazily=True)["args"]
            given = {**given, "model": saved.get("model", DEFAULT)}
        return super().variant(given)


def spellings(options: type[Options]) -> set[str]:
    """Names of the options of a class, as in Python, and their aliases."""
    names = {f.name: f.metadata["aliases"] for f in fields(options)}
    return set(names) | {alias.lstrip("-").replace("-", "_") for aliases in names.values() for alias in aliases}


@cache
def options_of(root: type[ModelArgs], entry: Entry) -> type[ModelArgs]:
    """The options `root` with those of one detector; what its authors published are the defaults."""
    parts = [entry.config, root, *root.parts_of(entry)]
    bases = tuple(part for part in parts if not any(other is not part and issubclass(other, part) for other in parts))
    body: dict[str, Any] = {"__annotations__": {}, "__doc__": root.__doc__, "__module__": root.__module__}
    for name, value in ({"model": entry.name} | dict(entry.published)).items():
        owner = next((part for part in parts if name in {f.name for f in fields(part)}), None)
        if owner is None:
            continue  # an option of training, in a program that does not train
        body["__annotations__"][name] = next(f.type for f in fields(owner) if f.name == name)
        body[name] = override(owner, name, value)
    body |= {"PRESETS": (*entry.presets, *root.presets_of(entry)), "ROOT": root, "MODEL": entry.name}
    made: type[ModelArgs] = dataclass(type(root)(root.__name__, bases, body))  # type: ignore[misc]
    return made


def published(model: str) -> dict[str, Any]:
    """What a detector means by default: the options of its module and the shared ones its authors set."""
    entry = entry_of(model)
    return {f.name: default_of(f) for f in fields(entry.config)} | dict(entry.published)


BUILT_IN = {"data_path": None, "dataset": "demo"}


@dataclass
class KeepingArgs(HoldOutArgs):
    """The decision, by normal images that are kept from training."""

    false_alarms: float = override(HoldOutArgs, "false_alarms", needs={"calibration_share": ANY})


@dataclass
class Args(DetectorArgs, TileArgs):
    """A detector on one class of a data set."""

    obj: Optional[str] = arg(None, "class; None = the only one, or the demo's first", type=str, aliases=["class-name"])
    shot: Optional[int] = arg(
        None, "normal images it learns from, drawn by seed; None = all", type=int, at_least=1, aliases=["k-shot"]
    )

    @classmethod
    def parts_of(cls, entry: Entry) -> list[type[Options]]:
        deciding = [] if entry.transductive else [DecisionArgs if entry.leaves_out else KeepingArgs]
        return [*super().parts_of(entry), *deciding]

    @classmethod
    def presets_of(cls, entry: Entry) -> tuple[Preset, ...]:
        all_are_learned = [Preset(when={"protocol": "paper"}, then={"calibration_share": 0.0})] if entry.trained else []
        toy = entry.demo.get("backbone"), entry.demo.get("layers")
        layers_of_toy = [Preset(when={"backbone": toy[0]}, then={"layers": toy[1], "image_size": [224]})]
        return (
            *all_are_learned,
            *(layers_of_toy if all(toy) else []),  # its patches are small: at 448 px there would be 3,136 of them
            Preset(when=BUILT_IN, then={"image_size": [128, 128]}, unless=("backbone", "weights")),
            Preset(when=BUILT_IN, then=entry.demo, unless=("backbone", "weights")),
        )

    def check(self) -> None:
        if self.tile:
            self._check_tiles()
        patience = getattr(self, "early_stopping_patience", 0)
        if patience:
            raise OptionError(
                f"early_stopping_patience={patience}: there is no validation split here (HDMAP experiments have one)"
            )

    def _check_tiles(self) -> None:
        entry = entry_of(self.model)
        if entry.placed or entry.transductive:
            why = "knows what belongs at each place of an image" if entry.placed else "scores images by one another"
            raise OptionError(f"tile={self.tile}: {self.model} {why}, so it cannot learn from tiles")


def tiny(**changes: Any) -> Args:
    """Seconds on a CPU: a random ResNet-18 or narrow networks, one epoch."""
    small: dict[str, Any] = {"image_size": [64, 64], "figures": False}
    small |= entry_of(changes.get("model", DEFAULT)).small
    return Args(**(small | changes))
