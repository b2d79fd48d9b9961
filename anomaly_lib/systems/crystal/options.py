"""Every option of the crystal + text system, written once. None = decided by --protocol or by the data."""

from dataclasses import dataclass, replace
from typing import Optional

from anomaly_lib.config import Options, Switch, arg, override
from anomaly_lib.errors import UserError
from anomaly_lib.fusion import LATE_FUSIONS
from anomaly_lib.models.crystal.fusion import CrystalFusionConfig
from anomaly_lib.options import BackboneArgs, CacheArgs, DataArgs, EvalArgs, OptimArgs, RunArgs, TrackArgs
from anomaly_lib.systems.crystal.data.dataset import DATASETS, SPLIT_SEED
from anomaly_lib.systems.crystal.data.graph import GraphSettings

HEADS = [1, 2, 4, 8]


@dataclass
class SplitArgs(Options):
    """What is trained on and tested."""

    property: str = arg("formation_energy", "target property: an everyday name or the folder's name")
    train_ratio: float = arg(0.8, "share of the crystals to train on", at_least=0, at_most=1)
    val_ratio: float = arg(0.1, "share to validate on", at_least=0, at_most=1)
    test_ratio: float = arg(0.1, "share to test on", at_least=0, at_most=1)
    n_train: Optional[int] = arg(None, "how many to train on; None = by ratio", type=int, at_least=1)
    n_val: Optional[int] = arg(None, "how many to validate on; None = by ratio", type=int, at_least=1)
    n_test: Optional[int] = arg(None, "how many to test on; None = by ratio", type=int, at_least=1)
    split_seed: int = arg(SPLIT_SEED, "seed of the random split (the published program always uses 123)", at_least=0)
    split_file: Optional[str] = arg(
        None, "JSON file with train, val and test ids; 'official' = official_split.json beside the CSV", type=str
    )
    use_preprocessed: Switch = arg(False, "keep graphs in --preprocessed_dir instead of the feature cache's folder")
    preprocessed_dir: str = arg("preprocessed_data", "folder of --use_preprocessed")


@dataclass
class GraphArgs(Options):
    """The graph encoder."""

    alignn_layers: Optional[int] = arg(None, "layers with bond angles; None = 4 (2 on the built-in data)", type=int)
    gcn_layers: Optional[int] = arg(None, "layers over bonds only; None = 4 (2 on the built-in data)", type=int)
    hidden_features: Optional[int] = arg(None, "channels; None = 256 (64 on the built-in data)", type=int, at_least=8)
    graph_dropout: float = arg(0.0, "dropout in the graph layers", at_least=0, at_most=0.95)
    learned_elements: Switch = arg(False, "add a learned vector per element to the 92 published features")
    max_neighbors: int = arg(12, "neighbours of an atom; whole shells are kept", at_least=1)
    graph_tolerance: Optional[float] = arg(
        None, "Angstrom within which distances are one shell: 1e-3 (clean) or 0 (paper: decided by rounding)",
        type=float, at_least=0,
    )  # fmt: skip
    periodic_images: Optional[str] = arg(
        None, "bonds of an atom to its own image: 'exact' (clean; a larger cell gives the same result) or 'doubled' "
        "(paper)", type=str, choices=["exact", "doubled"],
    )  # fmt: skip


@dataclass
class MiddleFusionArgs(Options):
    """Text inside the graph layers."""

    use_middle_fusion: Switch = arg(False, "inject the text after chosen ALIGNN layers")
    middle_fusion_layers: list[int] = arg([2], "ALIGNN layers, counted from 0, after which it is injected", type=int)
    middle_fusion_hidden_dim: int = arg(128, "hidden width of the text transform", at_least=1)
    middle_fusion_num_heads: int = arg(2, "no effect (nor in the published program)", choices=[1, 2, 4])
    middle_fusion_dropout: float = arg(0.1, "dropout of the text transform and of the output", at_least=0, at_most=0.95)
    middle_fusion_use_gate_norm: Switch = arg(False, "normalise [atoms | text] before the gate")
    middle_fusion_norm_per_half: Switch = arg(False, "one norm for atoms and one for text instead of one over both")
    middle_fusion_use_learnable_scale: Switch = arg(False, "learn a scale on the text")
    middle_fusion_initial_scale: float = arg(1.0, "where that scale starts")
    scale_learning_rate: Optional[float] = arg(
        None, "learning rate of text_scale and node_scale; None = 20 x --learning_rate (paper: the same)", type=float
    )
    use_improved_middle_fusion: Switch = arg(False, "the variant with node scale and importance gate")
    middle_fusion_use_residual_scaling: Switch = arg(True, "improved variant: learn a scale on the atoms")
    middle_fusion_use_dynamic_gating: Switch = arg(True, "improved variant: importance of each atom")
    middle_fusion_initial_node_scale: float = arg(1.0, "improved variant: where the atoms' scale starts")


@dataclass
class AttentionArgs(Options):
    """Atoms, words and vectors that read each other, and how both vectors become one."""

    use_fine_grained_attention: Switch = arg(False, "atoms read word pieces before pooling")
    fine_grained_hidden_dim: int = arg(256, "width of that attention", at_least=1)
    fine_grained_num_heads: int = arg(8, "its heads", choices=HEADS)
    fine_grained_dropout: float = arg(0.1, "its dropout", at_least=0, at_most=0.95)
    fine_grained_use_projection: Switch = arg(True, "project atoms and words first")
    use_cross_modal: Switch = arg(True, "exchange between the graph vector and the text vector")
    cross_modal_hidden_dim: int = arg(256, "width of the exchange", at_least=1)
    cross_modal_num_heads: int = arg(4, "its heads", choices=HEADS)
    cross_modal_dropout: float = arg(0.1, "its dropout, also that of late fusion", at_least=0, at_most=0.95)
    cross_modal_tokens: Switch = arg(
        False, "attend to all atoms and words; without it each side is one vector and the attention weight is always 1"
    )
    cross_modal_attention_type: str = arg(
        "bidirectional", "unidirectional = only the graph reads", choices=["bidirectional", "unidirectional"]
    )
    late_fusion_type: str = arg("concat", "how both vectors become one", choices=["concat", *LATE_FUSIONS])
    late_fusion_rank: int = arg(16, "rank of bilinear and tucker", at_least=1)
    late_fusion_output_dim: int = arg(64, "width after late fusion (all but concat)", at_least=1)
    use_contrastive: Switch = arg(False, "pull a crystal's graph and text vectors together")
    contrastive_weight: float = arg(0.1, "weight of that loss", at_least=0)
    contrastive_temperature: float = arg(0.1, "its temperature", at_least=1e-3)


@dataclass
class CompatibilityArgs(Options):
    """Accepted because published commands use them; they have no effect here nor there."""

    fusion_strategy: str = arg("gated", "no effect", choices=["average", "concat", "gated"])
    gated_fusion_type: str = arg("dual_gate", "no effect", choices=["single_gate", "dual_gate", "attention"])
    gated_fusion_hidden_dim: int = arg(128, "no effect")
    gated_fusion_dropout: float = arg(0.1, "no effect")
    mask_stopwords: Switch = arg(False, "no effect")
    remove_stopwords: Switch = arg(False, "no effect")
    stopwords_dir: str = arg("", "no effect")
    config_file: Optional[str] = arg(None, "no effect; use --config FILE.json", type=str)


@dataclass
class Args(
    CompatibilityArgs,
    AttentionArgs,
    MiddleFusionArgs,
    GraphArgs,
    SplitArgs,
    CacheArgs,
    EvalArgs,
    OptimArgs,
    BackboneArgs,
    DataArgs,
    TrackArgs,
    RunArgs,
):
    """Crystal property prediction from structure and text: ALIGNN with middle, cross-modal and late fusion."""

    dataset: str = override(DataArgs, "dataset", "jarvis", help="folder layout", choices=list(DATASETS))
    data_path: Optional[str] = override(
        DataArgs, "data_path", help="folder that holds <dataset>/<property>/; None = built-in crystals",
        aliases=["root-dir"],
    )  # fmt: skip
    modality: str = arg("both", "graph and text alone are baselines", choices=["both", "graph", "text"])
    compare: Optional[str] = arg(
        None, "also train graph-only and text-only baselines; None = on the built-in data only", type=str,
        choices=["True", "False"],
    )  # fmt: skip
    backbone: str = override(
        BackboneArgs, "backbone", "hashed-text",
        help="text encoder: hashed-text (built in, no weights) or matscibert (needs --weights FOLDER)",
        aliases=["text-encoder"],
    )  # fmt: skip
    weights: Optional[str] = override(BackboneArgs, "weights", aliases=["text-weights"])
    text_max_tokens: int = arg(512, "word pieces read of each text", at_least=2, at_most=512)
    text_levels: str = arg(
        "all", "sentences used: global, global+semi (whole crystal and polyhedra) or all",
        choices=["global", "global+semi", "all"],
    )  # fmt: skip
    epochs: Optional[int] = arg(  # type: ignore[assignment]
        None, "passes over the training data; None = 1000 (30 on the built-in data)", type=int, at_least=0,
        aliases=["epoch", "num-epochs"],
    )  # fmt: skip
    batch_size: Optional[int] = arg(  # type: ignore[assignment]
        None, "crystals per step; None = 64 (32 on the built-in data)", type=int, at_least=1
    )
    weight_decay: float = override(OptimArgs, "weight_decay", 1e-5)
    grad_clip: float = override(OptimArgs, "grad_clip", 1.0)
    warmup_steps: int = arg(
        2000, "steps in which the learning rate rises, at most 30% of all (paper: ignored, always 30%)", at_least=0
    )
    compile: Switch = arg(False, "compile the network (needs a C++ compiler on a CPU)")
    ema_decay: float = arg(0.0, "average the weights with this decay; 0 = off", at_least=0, at_most=0.99999)
    standardize: Optional[str] = arg(
        None, "train on (target - mean) / std of the training part: True (clean) or False (paper)", type=str,
        choices=["True", "False"],
    )  # fmt: skip
    early_stopping_patience: int = arg(0, "epochs without a better validation figure before stopping; 0 = never")
    classification: Switch = arg(False, "binary targets: cross-entropy, accuracy")
    classification_threshold: float = arg(0.5, "probability above which a crystal is positive", at_least=0, at_most=1)
    select: str = override(EvalArgs, "select", "val")
    seed: int = override(RunArgs, "seed", 123, aliases=["random-seed"])
    save_every: int = override(RunArgs, "save_every", 1)


QUIRKS: dict[str, tuple[object, object]] = {
    "graph_tolerance": (1e-3, 0.0),
    "periodic_images": ("exact", "doubled"),
    "standardize": ("True", "False"),
}
"""option: (its value under --protocol clean, under --protocol paper)."""
PUBLISHED = {"alignn_layers": 4, "gcn_layers": 4, "hidden_features": 256, "epochs": 1000, "batch_size": 64}
BUILT_IN = {"alignn_layers": 2, "gcn_layers": 2, "hidden_features": 64, "epochs": 30, "batch_size": 32}


def resolve(args: Args) -> Args:
    """Fill what was left open from --protocol and from the data, and check what needs two options to check."""
    paper = args.protocol == "paper"
    filled: dict[str, object] = {name: values[paper] for name, values in QUIRKS.items() if getattr(args, name) is None}
    sizes = PUBLISHED if args.data_path else BUILT_IN
    filled |= {name: value for name, value in sizes.items() if getattr(args, name) is None}
    if args.compare is None:
        filled["compare"] = str(args.data_path is None and args.modality == "both")
    if args.scale_learning_rate is None:
        filled["scale_learning_rate"] = args.learning_rate * (1 if paper else 20)
    if args.data_path is None and args.middle_fusion_layers == [2] and args.alignn_layers is None:
        filled["middle_fusion_layers"] = [BUILT_IN["alignn_layers"] - 1]
    resolved = replace(args, **filled)  # type: ignore[arg-type]
    for width, heads in (
        ("cross_modal_hidden_dim", "cross_modal_num_heads"),
        ("fine_grained_hidden_dim", "fine_grained_num_heads"),
    ):
        if getattr(args, width) % getattr(args, heads):
            raise UserError(f"--{width} {getattr(args, width)} is not a multiple of --{heads} {getattr(args, heads)}")
    if args.modality != "both" and args.use_contrastive:
        raise UserError("--use_contrastive compares graph and text: it needs --modality both")
    model_config(resolved, text_features=1)  # checks --middle_fusion_layers
    return resolved


def without_effect(args: Args) -> list[str]:
    """Options that were given and change nothing, neither here nor in the published program."""
    given = {
        "middle_fusion_num_heads": args.middle_fusion_num_heads,
        "fusion_strategy": args.fusion_strategy,
        "gated_fusion_type": args.gated_fusion_type,
        "gated_fusion_hidden_dim": args.gated_fusion_hidden_dim,
        "gated_fusion_dropout": args.gated_fusion_dropout,
        "mask_stopwords": args.mask_stopwords,
        "remove_stopwords": args.remove_stopwords,
        "stopwords_dir": args.stopwords_dir,
        "config_file": args.config_file,
    }
    return [name for name, value in given.items() if value != getattr(Args(), name)]


def graph_settings(args: Args) -> GraphSettings:
    """The graphs these options ask for."""
    assert args.graph_tolerance is not None
    return GraphSettings(
        max_neighbors=args.max_neighbors,
        tolerance=args.graph_tolerance,
        double_self_images=args.periodic_images == "doubled",
    )


def needs_tokens(args: Args) -> bool:
    """Word pieces are only kept when something reads them."""
    return args.modality == "both" and (
        args.use_fine_grained_attention or (args.use_cross_modal and args.cross_modal_tokens)
    )


def model_config(args: Args, *, text_features: int) -> CrystalFusionConfig:
    """The fusion model these options ask for."""
    assert args.alignn_layers is not None
    assert args.gcn_layers is not None
    assert args.hidden_features is not None
    return CrystalFusionConfig(
        alignn_layers=args.alignn_layers,
        gcn_layers=args.gcn_layers,
        hidden_features=args.hidden_features,
        graph_dropout=args.graph_dropout,
        learned_elements=args.learned_elements,
        text_features=text_features,
        middle_layers=tuple(args.middle_fusion_layers) if args.use_middle_fusion else (),
        middle_hidden_dim=args.middle_fusion_hidden_dim,
        middle_dropout=args.middle_fusion_dropout,
        middle_gate_norm=args.middle_fusion_use_gate_norm,
        middle_norm_per_half=args.middle_fusion_norm_per_half,
        middle_learnable_scale=args.middle_fusion_use_learnable_scale,
        middle_initial_scale=args.middle_fusion_initial_scale,
        middle_improved=args.use_improved_middle_fusion,
        middle_residual_scaling=args.middle_fusion_use_residual_scaling,
        middle_dynamic_gating=args.middle_fusion_use_dynamic_gating,
        middle_initial_node_scale=args.middle_fusion_initial_node_scale,
        fine_grained=args.use_fine_grained_attention,
        fine_grained_hidden_dim=args.fine_grained_hidden_dim,
        fine_grained_num_heads=args.fine_grained_num_heads,
        fine_grained_dropout=args.fine_grained_dropout,
        fine_grained_projection=args.fine_grained_use_projection,
        cross_modal=args.use_cross_modal,
        cross_modal_hidden_dim=args.cross_modal_hidden_dim,
        cross_modal_num_heads=args.cross_modal_num_heads,
        cross_modal_dropout=args.cross_modal_dropout,
        cross_modal_tokens=args.cross_modal_tokens,
        cross_modal_bidirectional=args.cross_modal_attention_type == "bidirectional",
        late_fusion=args.late_fusion_type,
        late_rank=args.late_fusion_rank,
        late_output_dim=args.late_fusion_output_dim,
    )
