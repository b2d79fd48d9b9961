"""Every option of SOWA that is not its network's or its scores' (`models/sowa/config.py`); imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from anomaly_lib.config import ANY, Options, Preset, Switch, arg, override
from anomaly_lib.data.names import DATASET_NAMES
from anomaly_lib.errors import OptionError
from anomaly_lib.models.detectors.registry import load_plugin
from anomaly_lib.models.sowa.config import AnomalyCLIPConfig, ScoreConfig
from anomaly_lib.options import (
    BackboneArgs,
    CacheArgs,
    DataArgs,
    DecisionArgs,
    EvalArgs,
    OptimArgs,
    RunArgs,
    TileArgs,
    TrackArgs,
)


@dataclass
class LearnArgs(Options):
    """How adapters and prompts are learned."""

    mosaic_rate: float = arg(0.0, "share of training images replaced by 2x2 mosaics", at_least=0, at_most=1)
    mosaic_label: str = arg(
        "any",
        "label of a mosaic: any part anomalous, or that of the replaced image (paper)",
        choices=["any", "replaced"],
        needs={"mosaic_rate": ANY},
    )
    loss: str = arg(
        "clean",
        "cross entropy and focal loss, or the original's double softmax and shifted focal (paper)",
        choices=["clean", "paper"],
    )
    text_rate: float = arg(0.1, "learning rate of prompts and text map, as a share of --learning-rate", at_least=0)
    decay: str = arg("matrices", "weight decay on matrices only, or on everything (paper)", choices=["matrices", "all"])
    schedule: str = arg("plateau", "learning rate over the epochs", choices=["plateau", "constant", "cosine"])
    enable_validation: Switch = arg(
        False, "keep images of the training classes from training and say after every epoch how they fare"
    )
    validation_share: float = arg(
        0.2, "share of the images of each class and label that is kept", at_least=0.01, at_most=0.9,
        needs={"enable_validation": True},
    )  # fmt: skip
    early_stopping_patience: int = arg(
        0,
        "epochs without a lower loss (of validation, where it is enabled) before training ends; 0 = never",
        at_least=0,
        aliases=["patience"],
        resumable=True,
    )


@dataclass
class PluginArgs(Options):
    """Parts of your own."""

    CHOOSES: ClassVar[Sequence[str]] = ("plugin",)
    plugin: Optional[str] = arg(
        None, "Python file that registers adapters, fusions or metrics of your own; it is run", type=str, result=False
    )

    @classmethod
    def variant(cls, given: Mapping[str, Any]) -> type[Options]:
        """This class; the names that the plugin registers are choices from now on."""
        if given.get("plugin"):
            load_plugin(given["plugin"])
        return cls

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> Any:
        """As of all options; what a file says of a plugin is never run."""
        return super().from_saved({name: value for name, value in saved.items() if name != "plugin"})


@dataclass
class Args(
    LearnArgs,
    ScoreConfig,
    AnomalyCLIPConfig,
    TileArgs,
    CacheArgs,
    DecisionArgs,
    EvalArgs,
    OptimArgs,
    BackboneArgs,
    DataArgs,
    TrackArgs,
    RunArgs,
    PluginArgs,
):
    """SOWA: adapters and prompts trained on one data set with masks, tested on classes they have never seen."""

    dataset: str = override(DataArgs, "dataset", choices=DATASET_NAMES)
    train_classes: list[str] = arg(
        [], "classes to train on; empty = all, or without --eval-data-path every second one", type=str
    )
    test_classes: list[str] = arg(
        [], "classes to test on; empty = all of --eval-data-path, or those not trained on", type=str, aliases=["obj"]
    )
    eval_data_path: Optional[str] = arg(None, "data set to test on; None = held-out classes of --data-path", type=str)
    eval_dataset: Optional[str] = arg(
        None,
        "layout of --eval-data-path; None = that of --dataset",
        type=str,
        choices=DATASET_NAMES,
        needs={"eval_data_path": ANY},
    )
    shot: int = arg(0, "normal images remembered per test class (0 = zero-shot)", at_least=0, aliases=["k-shot"])
    normal_data: Optional[str] = arg(
        None,
        "folder of normal images of the tested class, or of a folder for each, that set the decision; None = the "
        "support images",
        type=str,
    )
    backbone: str = override(BackboneArgs, "backbone", "ViT-L-14-336:openai")
    image_size: list[int] = arg(
        [],
        "height and width of the network's input, one number = a square; empty = the backbone's",
        type=int,
        at_least=1,
    )
    epochs: int = override(OptimArgs, "epochs", 5, aliases=["max-epochs"])
    batch_size: int = override(OptimArgs, "batch_size", 8)
    learning_rate: float = override(OptimArgs, "learning_rate", 1e-3)
    weight_decay: float = override(OptimArgs, "weight_decay", 0.2, help="decoupled weight decay")
    select: str = override(
        EvalArgs,
        "select",
        "val",
        help="val = as many of --epochs as help training classes that are left out in turn; last (paper) = all; "
        "best-on-test is labelled oracle wherever it is printed",
    )
    layers_dtype: str = arg("fp16", "number format of stored taps", choices=["fp32", "fp16", "bf16"])
    ablate_stages: Switch = arg(False, "also score every stage alone (stages.csv)")
    compile: Switch = arg(False, "compile the trained part (needs a C++ compiler on a CPU)")
    fast_dev_run: Switch = arg(False, "one batch of training, one batch per test class: does everything run?")
    visualize: Switch = arg(False, "draw every test image beside its truth and its heat map", result=False)
    dirpath: Optional[str] = arg(
        None,
        "folder of these pictures; None = RUN/visualizations",
        type=str,
        needs={"visualize": True},
        result=False,
    )

    PRESETS: ClassVar[Sequence[Preset]] = (
        Preset(
            when={"dataset": "demo", "data_path": None, "eval_data_path": None},
            then={"backbone": "demo-clip"},
            unless=("backbone", "weights"),
        ),
        Preset(
            when={"protocol": "paper"},
            then={
                "mosaic_rate": 0.2,
                "mosaic_label": "replaced",
                "loss": "paper",
                "text_rate": 1.0,
                "decay": "all",
                "start": "random",
                "map_calibration": "none",
                "score_scaling": "transductive",
                "image_score": "text",
                "select": "last",
            },
        ),
    )

    def check(self) -> None:
        both = sorted(set(self.train_classes) & set(self.test_classes))
        if both and not self.eval_data_path:
            raise OptionError(f"test_classes={' '.join(both)}: would be trained on and tested on")
        if self.prompt_learner == "zero" and self.adapter == ["none"] and self.epochs:
            raise OptionError("prompt_learner=zero with adapter=none trains nothing: give epochs=0")
        if self.dataset != "demo" and not self.data_path:
            raise OptionError(f"dataset={self.dataset}: give data_path=, the folder of the data set")
        count = len(self.feature_map_idx) or 4
        if any(stage >= count for stage in self.stages):
            raise OptionError(f"stages={' '.join(map(str, self.stages))}: the model has stages 0 to {count - 1}")
        if self.tile and self.vision == "residual":
            raise OptionError(
                f"tile={self.tile}: vision=residual keeps nothing of an image, so that it cannot be tiled"
            )
        if len(self.image_size) > 2:
            raise OptionError(f"image_size={' '.join(map(str, self.image_size))}: takes one or two numbers")


def adapters_in_words(args: AnomalyCLIPConfig) -> str:
    """Their names, each once."""
    return "-".join(dict.fromkeys(args.adapter))


def tiny(**changes: Any) -> Args:
    """Seconds on a CPU: a tiny random CLIP, two demo classes, one batch of each."""
    small: dict[str, Any] = {
        "backbone": "tiny-clip",
        "weights": "random",
        "train_classes": ["woven"],
        "test_classes": ["grid"],
        "epochs": 2,
        "fast_dev_run": True,
        "shot": 2,
        "cache": "ram",
        "figures": False,
    }
    return Args(**(small | changes))
