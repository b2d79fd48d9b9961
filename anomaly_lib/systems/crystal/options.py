"""Every option of the crystal + text system; those of its networks and of its data lie in their own files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from anomaly_lib.config import ANY, Options, Preset, Switch, arg, override
from anomaly_lib.errors import OptionError
from anomaly_lib.models.crystal.config import CrystalFusionConfig
from anomaly_lib.options import BackboneArgs, CacheArgs, DataArgs, EvalArgs, OptimArgs, RunArgs, TrackArgs
from anomaly_lib.systems.crystal.data.settings import DATASETS, PAPER_GRAPHS, GraphSettings, SplitSettings
from anomaly_lib.systems.crystal.original_config import in_our_words

HASHED_TEXT = "hashed-text"
MOST_TOKENS = 512
READS_TEXT = {"modality": ("both", "text")}


@dataclass
class TargetArgs(Options):
    """What is predicted from what."""

    property: str = arg("formation_energy", "target property: an everyday name or the folder's name")
    modality: str = arg("both", "graph and text alone are baselines", choices=["both", "graph", "text"])
    compare: Switch = arg(False, "also train graph-only and text-only baselines", needs={"modality": "both"})
    split_file: Optional[str] = arg(
        None, "JSON file with train, val and test ids; 'official' = official_split.json beside the CSV", type=str
    )
    use_preprocessed: Switch = arg(False, "keep graphs in --preprocessed_dir instead of the feature cache's folder")
    preprocessed_dir: str = arg("preprocessed_data", "folder of --use_preprocessed")
    text_max_tokens: int = arg(
        MOST_TOKENS, "word pieces read of each text", at_least=2, at_most=MOST_TOKENS, needs=READS_TEXT
    )
    text_levels: str = arg(
        "all",
        "sentences used: global, global+semi (whole crystal and polyhedra) or all",
        choices=["global", "global+semi", "all"],
        needs=READS_TEXT,
    )


@dataclass
class LossArgs(Options):
    """The loss."""

    standardize: Switch = arg(
        True, "train on (target - mean) / std of the training part", needs={"classification": False}
    )
    classification: Switch = arg(False, "binary targets: cross-entropy, accuracy")
    classification_threshold: float = arg(0.5, "probability above which a crystal is positive", at_least=0, at_most=1)
    use_contrastive: Switch = arg(False, "pull a crystal's graph and text vectors together")
    contrastive_weight: float = arg(0.1, "weight of that loss", at_least=0)
    contrastive_temperature: float = arg(0.1, "its temperature", at_least=1e-3)

    PRESETS: ClassVar[Sequence[Preset]] = (Preset(when={"classification": True}, then={"standardize": False}),)


@dataclass
class UnusedArgs(Options):
    """Taken because published commands use them; they have no meaning, neither here nor there."""

    middle_fusion_num_heads: int = arg(2, "no meaning", choices=[1, 2, 4])
    fusion_strategy: str = arg("gated", "no meaning", choices=["average", "concat", "gated"])
    gated_fusion_type: str = arg("dual_gate", "no meaning", choices=["single_gate", "dual_gate", "attention"])
    gated_fusion_hidden_dim: int = arg(128, "no meaning")
    gated_fusion_dropout: float = arg(0.1, "no meaning")
    mask_stopwords: Switch = arg(False, "no meaning")
    remove_stopwords: Switch = arg(False, "no meaning")
    stopwords_dir: str = arg("", "no meaning")


@dataclass
class Args(
    UnusedArgs,
    CrystalFusionConfig,
    LossArgs,
    GraphSettings,
    SplitSettings,
    TargetArgs,
    CacheArgs,
    EvalArgs,
    OptimArgs,
    BackboneArgs,
    DataArgs,
    TrackArgs,
    RunArgs,
):
    """Crystal property prediction from structure and text: ALIGNN with middle, cross-modal and late fusion."""

    dataset: str = override(
        DataArgs, "dataset", "jarvis", help="folder layout", choices=DATASETS, needs={"data_path": ANY}
    )
    data_path: Optional[str] = override(
        DataArgs,
        "data_path",
        help="folder that holds <dataset>/<property>/; None = built-in crystals",
        aliases=["root-dir"],
    )
    backbone: str = override(
        BackboneArgs,
        "backbone",
        HASHED_TEXT,
        help="text encoder: hashed-text (built in, no weights) or matscibert (needs --weights FOLDER)",
        aliases=["text-encoder"],
        needs=READS_TEXT,
    )
    weights: Optional[str] = override(BackboneArgs, "weights", aliases=["text-weights"], needs=READS_TEXT)
    epochs: int = override(OptimArgs, "epochs", 1000)
    batch_size: int = override(OptimArgs, "batch_size", 64)
    weight_decay: float = override(OptimArgs, "weight_decay", 1e-5)
    grad_clip: float = override(OptimArgs, "grad_clip", 1.0)
    scale_learning_rate: Optional[float] = arg(
        None,
        "learning rate of text_scale and node_scale; None = 20 x --learning_rate (--protocol paper: 1 x)",
        type=float,
        at_least=0,
    )
    warmup_steps: int = arg(
        2000, "steps in which the learning rate rises, at most 30% of all (paper: ignored, always 30%)", at_least=0
    )
    compile: Switch = arg(False, "compile the network (needs a C++ compiler on a CPU)")
    ema_decay: float = arg(0.0, "average the weights with this decay; 0 = off", at_least=0, at_most=0.99999)
    early_stopping_patience: int = arg(
        0, "epochs without a better validation figure before stopping; 0 = never", at_least=0, resumable=True
    )
    select: str = override(EvalArgs, "select", "val")
    seed: int = override(RunArgs, "seed", 123, aliases=["random-seed"])

    PRESETS: ClassVar[Sequence[Preset]] = (
        Preset(when={"protocol": "paper"}, then={**PAPER_GRAPHS, "standardize": False}),
        Preset(
            when={"data_path": None},
            then={"alignn_layers": 2, "gcn_layers": 2, "hidden_features": 64, "epochs": 30, "batch_size": 32},
        ),
        Preset(when={"data_path": None}, then={"middle_fusion_layers": [1]}, unless=("alignn_layers",)),
        Preset(when={"data_path": None, "modality": "both"}, then={"compare": True}),
    )

    @classmethod
    def in_our_words(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        return in_our_words(content)

    @property
    def learned_scales(self) -> tuple[str, ...]:
        """Names of the scales that these options train."""
        on = self.use_middle_fusion and self.modality == "both"
        node = self.use_improved_middle_fusion and self.middle_fusion_use_residual_scaling
        found = {"text_scale": self.middle_fusion_use_learnable_scale, "node_scale": node}
        return tuple(name for name, learned in found.items() if on and learned)

    @property
    def reads_words(self) -> bool:
        """Word pieces are only kept when something reads them."""
        return self.modality == "both" and self.reads_tokens

    def check(self) -> None:
        if self.modality != "both" and self.use_contrastive:
            raise OptionError("use_contrastive=True: compares graph and text; it needs modality=both")
        if self.scale_learning_rate is not None and not self.learned_scales:
            raise OptionError(
                f"scale_learning_rate={self.scale_learning_rate}: has no effect, no scale is learned; give "
                "use_middle_fusion=True and middle_fusion_use_learnable_scale=True"
            )
        if self.backbone == HASHED_TEXT and self.weights is not None:
            raise OptionError(f"weights={self.weights}: {HASHED_TEXT} has none; give backbone=matscibert")
        if self.backbone == HASHED_TEXT and self.text_max_tokens < MOST_TOKENS and not self.reads_words:
            raise OptionError(
                f"text_max_tokens={self.text_max_tokens}: has no effect: {HASHED_TEXT} counts words of whole texts; "
                "single ones are read with cross_modal_tokens=True or use_fine_grained_attention=True"
            )


def tiny(**changes: Any) -> Args:
    """Seconds on a CPU."""
    return Args(
        **{
            "epochs": 2, "n_train": 48, "n_val": 16, "n_test": 16, "hidden_features": 16, "batch_size": 16,
            "compare": False, "use_middle_fusion": True, "middle_fusion_use_learnable_scale": True, "cache": "ram",
            "figures": False,
            **changes,
        }
    )  # fmt: skip
