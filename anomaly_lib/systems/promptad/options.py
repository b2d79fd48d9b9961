"""Every option of PromptAD's programs; importing them loads no torch."""

from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from anomaly_lib.config import ANY, Options, Preset, Switch, arg, override, shown
from anomaly_lib.data.names import DATASET_NAMES
from anomaly_lib.errors import OptionError
from anomaly_lib.fusion.names import FUSION_NAMES, REFERENCE_MODES
from anomaly_lib.models.promptad.config import LossConfig, MemoryConfig, PromptADConfig, ScoreConfig
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

ALL = "all"  # --obj all: one model for every class of the data
PUBLISHED = "ViT-B-16-plus-240"
BUILT_IN = {"data_path": None, "dataset": "demo"}  # what is given where the built-in data are used


@dataclass
class MemoryArgs(MemoryConfig):
    """The patch memory."""

    memory_views: str = arg(
        "none", "also remember turned or mirrored support images", choices=["none", "flips", "rotations", "all"]
    )
    visual_backbone: Optional[str] = arg(
        None, "another frozen encoder for the visual branch, e.g. timm:vit_small_patch14_dinov2", type=str
    )
    visual_weights: Optional[str] = arg(
        None, "weights of --visual-backbone; as --weights", type=str, needs={"visual_backbone": ANY}, resumable=True
    )


@dataclass
class ReaderArgs(TileArgs):
    """How images enter the network."""

    image_size: list[int] = arg(
        [], "height and width of the network's input, or one number for both; empty = the backbone's own", type=int,
        at_least=1, aliases=["img-resize", "img-cropsize"],
    )  # fmt: skip
    test_color: str = arg("rgb", "colour order of test images; bgr is the original's slip", choices=["rgb", "bgr"])
    reader_resize: int = arg(0, "first squash images to this square, bilinearly; 0 = no", at_least=0, at_most=8192)

    def check(self) -> None:
        if len(self.image_size) > 2:
            raise OptionError(f"image_size={shown(self.image_size)}: takes one or two numbers")


@dataclass
class Args(
    PromptADConfig,
    MemoryArgs,
    ReaderArgs,
    CacheArgs,
    DecisionArgs,
    EvalArgs,
    OptimArgs,
    BackboneArgs,
    DataArgs,
    TrackArgs,
    RunArgs,
):
    """PromptAD: few-shot anomaly detection with learned prompts and a patch memory."""

    obj: Optional[str] = arg(
        None, "class to train on, or 'all'; None = the only class of the data", type=str, aliases=["class-name"]
    )
    shot: int = arg(1, "normal images to learn from (k)", at_least=1, aliases=["k-shot"])
    false_alarms: float = override(
        DecisionArgs, "false_alarms", help="promised share of normal images called anomalous; one image promises none"
    )
    shots: str = arg(
        "auto", "which ones: auto (published list where it fits, else by seed), seed, promptad, or a list file"
    )
    dataset: str = override(DataArgs, "dataset", choices=DATASET_NAMES)
    fusion_weights: list[float] = override(ScoreConfig, "fusion_weights", needs={"fusion_mode": "weighted"})
    sigma: float = override(ScoreConfig, "sigma", needs={"task": "seg"})
    image_max: str = override(ScoreConfig, "image_max", needs={"task": "cls"})
    triplet_axis: str = override(LossConfig, "triplet_axis", needs={"task": "seg"})
    backbone: str = override(BackboneArgs, "backbone", PUBLISHED)
    fusion_in_loss: Switch = arg(
        False,
        "extension: the contexts also learn to make the fused score tell pasted defects from the support images",
        needs={"calibration": "none"},
    )
    pretrained_dataset: Optional[str] = arg(
        None, "tag of the published weights, e.g. laion400m_e32; None = the one usual for the backbone", type=str
    )
    epochs: int = override(OptimArgs, "epochs", aliases=["Epoch"])
    batch_size: int = override(OptimArgs, "batch_size", 400)
    learning_rate: float = override(OptimArgs, "learning_rate", 0.002)
    weight_decay: float = override(OptimArgs, "weight_decay", 5e-4, help="L2 decay of the contexts")
    momentum: float = arg(0.9, "momentum of SGD", at_least=0, at_most=1)
    min_lr: float = arg(1e-5, "learning rate at the end of the cosine schedule", at_least=0)
    seed: int = override(RunArgs, "seed", 111)
    save_every: int = override(RunArgs, "save_every", 10)
    root_dir: Optional[str] = arg(
        None,
        "folder of a loop over classes, in the original's tree: DATASET/k_SHOT/{CLASS, checkpoint, csv}/...; "
        "None = --output-dir",
        type=str,
        result=False,
    )
    figures: Switch = override(EvalArgs, "figures", aliases=["vis"])
    eval_every: int = arg(
        0,
        "score the test set every so many epochs (from cached features); 0 = at the end",
        at_least=0,
        needs={"select": "last"},
    )

    PRESETS: ClassVar = (
        Preset(when=BUILT_IN, then={"backbone": "demo-clip"}, unless=("backbone", "weights", "pretrained_dataset")),
        Preset(when=BUILT_IN, then={"obj": "brushed_metal"}),
        Preset(
            when={"protocol": "paper"},
            then={
                "memory_tap": "post_attn_next", "test_color": "bgr", "reader_resize": 1024, "pairing": "modulo",
                "select": "best-on-test",
            },
        ),
        Preset(when={"protocol": "paper", "task": "seg"}, then={"triplet_axis": "patch"}),
    )  # fmt: skip

    def check(self) -> None:
        if self.root_dir is not None and (self.output_dir or self.save_path):
            raise OptionError(f"root_dir={self.root_dir}: says where the run lies; output_dir= and save_path= do too")
        if self.fusion_in_loss and self.tile:
            raise OptionError(f"fusion_in_loss=True: is not for tile={self.tile}, it ranks whole images")
        if self.fusion_in_loss and self.fusion_mode in REFERENCE_MODES:
            raise OptionError(
                f"fusion_in_loss=True: fusion_mode={self.fusion_mode} is no differentiable score; take another"
            )


@dataclass
class SegArgs(Args):
    """PromptAD at pixel level."""

    task: str = override(ScoreConfig, "task", "seg")


def tiny(**changes: Any) -> Args:
    """Seconds on a CPU: a tiny random CLIP, two epochs, small maps."""
    small: dict[str, Any] = {
        "backbone": "tiny-clip", "weights": "random", "epochs": 2, "resolution": 64, "cache": "ram", "figures": False
    }  # fmt: skip
    return Args(**(small | changes))


# -- studies over many checkpoints and runs -------------------------------------------------------------------------


@dataclass
class GateArgs(Options):
    """Gate experiment: branches, fusions and oracle of trained checkpoints."""

    checkpoint_dir: Optional[str] = arg(None, "tree of checkpoints written by train_cls.py / train_seg.py", type=str)
    branch: str = arg("gate", "name of this experiment; results go to OUTPUT/BRANCH/analysis")
    output_dir: str = arg("result", "folder of all experiments", aliases=["output", "root-dir"])
    dataset: list[str] = arg([], "only these data sets (folder names below --checkpoint-dir)", type=str)
    data_path: Optional[str] = arg(None, "folder of the data set; None = where each checkpoint was trained", type=str)
    obj: list[str] = arg([], "only these classes", type=str, aliases=["class-name"])
    shot: list[int] = arg([], "only these k", type=int, aliases=["k-shot"])
    task: list[str] = arg(["cls", "seg"], "cls, seg or both", choices=["cls", "seg"])
    modes: list[str] = arg(["max", "harmonic"], "fusions beside semantic, memory and oracle")
    weights: Optional[str] = arg(None, "backbone weights, where they have moved since training", type=str)
    device: str = arg("auto", "auto, cpu, cuda or cuda:N")
    figures: Switch = arg(True, "draw figures")
    fresh: Switch = arg(False, "measure again what has been measured", aliases=["force-retrain"])


@dataclass
class CompareArgs(Options):
    """Comparison of two gate experiments."""

    first: Optional[str] = arg(None, "experiment A (folder or full_results.csv); may stand without the flag", type=str)
    second: Optional[str] = arg(
        None, "experiment B; positive improvement = B is better; may stand without the flag", type=str
    )
    mode: str = arg("harmonic", "which mode's rows are compared")
    output: Optional[str] = arg(None, "also write the table to OUTPUT.csv, .json, .md and .tex", type=str)


@dataclass
class RunsArgs(Options):
    """The trainings: data sets x classes x shots x tasks."""

    datasets: list[str] = arg([], "data sets; empty = mvtec and visa with --data-path, else the demo data", type=str)
    data_path: Optional[str] = arg(
        None, "folder of the data; with several data sets, the folder that holds mvtec/, visa/, ...", type=str
    )
    classes: list[str] = arg([], "only these classes; 'key' = the six-class short list; empty = all", type=str)
    k_shots: list[int] = arg([1, 2, 4], "numbers of support images", aliases=["shots"], at_least=1)
    tasks: list[str] = arg(["cls", "seg"], "cls, seg or both", choices=["cls", "seg"])
    epochs: int = override(OptimArgs, "epochs", help="epochs of every run")
    train_flags: str = arg("", "more flags for every training command, in quotes")


@dataclass
class SweepArgs(RunsArgs):
    """PromptAD sweep: data sets x classes x shots x tasks."""

    fusion_mode: str = override(ScoreConfig, "fusion_mode", help="fusion of every run")
    output_dir: str = arg("result/harmonic_baseline", "tree of checkpoints and logs", aliases=["output"])
    root_dir: Optional[str] = arg(
        None, "the original's tree instead, with its tables: {DATASET}/k_{K}/csv/Seed_111-results.csv", type=str
    )
    parallel: Optional[int] = arg(
        None,
        "runs at a time, which share the cores; None = one, or with --launcher ray as many as the cluster holds",
        type=int,
        at_least=1,
    )
    gpus: list[str] = arg([], "one queue per GPU, e.g. 0 1; empty = CPU", type=str)
    launcher: str = arg("local", "local, or ray for many machines", choices=["local", "ray"])
    ray_address: Optional[str] = arg(
        None, "address of a running Ray cluster; None = Ray on this machine", type=str, needs={"launcher": "ray"}
    )
    retries: int = arg(0, "times a failed run is tried again", at_least=0)
    dry_run: Switch = arg(False, "print the equivalent commands and leave")


@dataclass
class FusionsArgs(RunsArgs):
    """What training with another fusion is worth: the same trainings with `max` and with `harmonic`, compared."""

    fusions: list[str] = arg(
        ["max", "harmonic"],
        "the pair that is trained and compared; with --fusion-in-loss each is compared with itself",
        choices=FUSION_NAMES,
    )
    k_shots: list[int] = override(RunsArgs, "k_shots", [1])
    seeds: list[int] = arg([111], "seeds of the trainings", at_least=0)
    protocol: str = override(
        EvalArgs, "protocol", "paper", help="protocol of the trainings; under clean the fusion chooses no epoch"
    )
    mode: str = override(
        ScoreConfig, "fusion_mode", help="fusion that scores both of the pair", needs={"fusion_in_loss": False}
    )
    fusion_in_loss: Switch = override(
        Args, "fusion_in_loss", help="compare without and with the fused score in the loss instead", needs={}
    )
    output_dir: str = arg("result/fusions", "folder of trainings, gate experiments and tables", aliases=["output"])

    def check(self) -> None:
        if not self.fusion_in_loss and len(self.fusions) != 2:
            raise OptionError(f"fusions={shown(self.fusions)}: give the two whose trainings are compared")
