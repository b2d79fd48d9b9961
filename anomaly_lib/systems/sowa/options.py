"""Every option of SOWA, written once. Quirks of the original default to None = decided by --protocol."""

from dataclasses import dataclass, replace
from typing import Optional

from anomaly_lib.config import Options, Switch, arg, override
from anomaly_lib.errors import UserError
from anomaly_lib.models.sowa.model import PROMPTS
from anomaly_lib.models.sowa.scores import IMAGE_SCORES, SCALINGS
from anomaly_lib.models.sowa.text import PLAIN_SETS
from anomaly_lib.models.sowa.vision import ADAPTERS, VISIONS
from anomaly_lib.options import BackboneArgs, CacheArgs, DataArgs, EvalArgs, OptimArgs, RunArgs, TrackArgs


@dataclass
class AdapterArgs(Options):
    """The window adapters (one value for all stages, or one per stage)."""

    feature_map_idx: list[int] = arg(
        [], "CLIP blocks that are adapted; empty = the last of each quarter (5 11 17 23 of 24)", type=int
    )
    vision: str = arg(
        "map", "map = frozen taps; residual = adapted tokens flow back into the tower (no stored taps, slow)",
        choices=list(VISIONS),
    )  # fmt: skip
    gamma: float = arg(0.1, "share of adapted tokens that flows back (--vision residual)", at_least=0, at_most=1)
    adapter: str = arg("window", "what adapts the patch tokens of a stage", choices=list(ADAPTERS))
    window_size: list[int] = arg([0], "side of a window in patches; 0 = half the grid", at_least=0)
    depth: list[int] = arg([1], "blocks of a stage; every second one has shifted windows", at_least=1)
    num_heads: int = arg(8, "attention heads of the adapter", at_least=1)
    cpb_dim: int = arg(64, "width of the position-bias network", at_least=1)
    value_only: Switch = arg(True, "compare values with values instead of queries with keys")
    hidden_features: list[int] = arg([], "hidden widths of the adapter's MLP; empty = one linear map", type=int)
    drop: float = arg(0.0, "dropout of projections", at_least=0, at_most=1)
    attn_drop: float = arg(0.1, "dropout of attention weights", at_least=0, at_most=1)
    drop_path: float = arg(0.0, "stochastic depth", at_least=0, at_most=1)
    share_weight: Switch = arg(False, "one set of trained adapter weights for all stages")


@dataclass
class PromptArgs(Options):
    """The prompts."""

    prompt_learner: str = arg(
        "coop", "learned contexts, plain phrases with a trained map, or no tuning at all", choices=list(PROMPTS)
    )
    class_names: list[str] = arg(
        ["object"], "names in the prompts; an image of another class reads the first", type=str
    )
    prompt_length: int = arg(12, "tokens of a learned context", at_least=1)
    normal_templates: list[str] = arg(["{}"], "normal phrasings; 'long' = the 44 of the original", type=str)
    anomaly_templates: list[str] = arg(["damaged {}"], "anomaly phrasings, as many as normal ones, or 'long'", type=str)
    plain_templates: str = arg(
        "short", "phrasings of --prompt-learner plain and zero: five, or CLIP-AC's ensemble of 35",
        choices=list(PLAIN_SETS),
    )  # fmt: skip
    context_words: str = arg("a photo of a", "what contexts say at the start of --start zero-shot")
    truncate: Switch = arg(False, "cut prompts that are too long instead of refusing them")
    text_linear: Switch = arg(True, "train a linear map on the text features")
    temperature: float = arg(0.07, "divides the cosines of the image score", at_least=1e-6)


@dataclass
class ScoreArgs(Options):
    """Scores."""

    shot: int = arg(0, "normal images remembered per test class (0 = zero-shot)", at_least=0, aliases=["k-shot"])
    sigma: float = arg(4.0, "Gaussian smoothing of the text map, in pixels; 0 = off", at_least=0)
    stages: list[int] = arg([], "score with these stages only (0 = the first); empty = all", type=int)
    mosaic_rate: Optional[float] = arg(
        None, "share of training images replaced by 2x2 mosaics: 0 (clean) or 0.2 (paper)", type=float, at_least=0,
        at_most=1,
    )  # fmt: skip
    score_scaling: Optional[str] = arg(
        None, "few-shot image score: against the support images (clean) or min-max over the test set (paper)", type=str,
        choices=list(SCALINGS),
    )  # fmt: skip
    loss: Optional[str] = arg(
        None, "clean, or the original's double softmax and shifted focal (paper)", type=str, choices=["clean", "paper"]
    )
    mosaic_label: Optional[str] = arg(
        None, "label of a mosaic: any part anomalous (clean) or that of the replaced image (paper)", type=str,
        choices=["any", "replaced"],
    )  # fmt: skip
    start: Optional[str] = arg(
        None, "training begins at plain CLIP's zero-shot answer (clean) or at random maps (paper)", type=str,
        choices=["zero-shot", "random"],
    )  # fmt: skip
    map_calibration: Optional[str] = arg(
        None, "a fitted scale and offset per map and weight per stage (logistic, clean) or bare cosines (none, paper)",
        type=str, choices=["logistic", "none"],
    )  # fmt: skip
    image_score: Optional[str] = arg(
        None, "zero-shot image score: mean of P(anomaly) and the map's peak (clean) or P(anomaly) (text, paper)",
        type=str, choices=list(IMAGE_SCORES),
    )  # fmt: skip
    text_rate: Optional[float] = arg(
        None, "learning rate of prompts and text map, as a share of --learning-rate: 0.1 (clean) or 1 (paper)",
        type=float, at_least=0,
    )  # fmt: skip
    decay: Optional[str] = arg(
        None, "weight decay on matrices only (clean) or on everything (paper)", type=str, choices=["matrices", "all"]
    )


QUIRKS: dict[str, tuple[object, object]] = {
    "mosaic_rate": (0.0, 0.2),
    "score_scaling": ("support", "transductive"),
    "loss": ("clean", "paper"),
    "mosaic_label": ("any", "replaced"),
    "start": ("zero-shot", "random"),
    "map_calibration": ("logistic", "none"),
    "image_score": ("mean", "text"),
    "text_rate": (0.1, 1.0),
    "decay": ("matrices", "all"),
    "select": ("val", "last"),
}
"""option: (its value under --protocol clean, under --protocol paper)."""


@dataclass
class Args(
    ScoreArgs, PromptArgs, AdapterArgs, CacheArgs, EvalArgs, OptimArgs, BackboneArgs, DataArgs, TrackArgs, RunArgs
):
    """SOWA: adapters and prompts trained on one data set with masks, tested on classes they have never seen."""

    train_classes: list[str] = arg(
        [], "classes to train on; empty = all, or without --eval-data-path every second one", type=str
    )
    test_classes: list[str] = arg(
        [], "classes to test on; empty = all of --eval-data-path, or those not trained on", type=str, aliases=["obj"]
    )
    eval_dataset: Optional[str] = arg(None, "layout of --eval-data-path; None = that of --dataset", type=str)
    eval_data_path: Optional[str] = arg(None, "data set to test on; None = held-out classes of --data-path", type=str)
    image_size: Optional[int] = arg(None, "side of the network's input; None = the backbone's", type=int)
    epochs: int = override(OptimArgs, "epochs", 5, aliases=["max-epochs"])
    batch_size: int = override(OptimArgs, "batch_size", 8)
    learning_rate: float = override(OptimArgs, "learning_rate", 1e-3)
    weight_decay: float = override(OptimArgs, "weight_decay", 0.2, help="decoupled weight decay")
    schedule: str = arg("plateau", "learning rate over the epochs", choices=["plateau", "constant", "cosine"])
    select: str = override(
        EvalArgs,
        "select",
        "auto",
        help="val (clean) = as many of --epochs as help training classes that are left out in turn; last (paper) = all "
        "of them; best-on-test is labelled oracle wherever it is printed; auto = by --protocol",
        choices=["auto", "last", "val", "best-on-test"],
    )
    layers_dtype: str = arg("fp16", "number format of stored taps", choices=["fp32", "fp16", "bf16"])
    ablate_stages: Switch = arg(False, "also score every stage alone (stages.csv)")
    compile: Switch = arg(False, "compile the trained part (needs a C++ compiler on a CPU)")
    fast_dev_run: Switch = arg(False, "one batch of training, one batch per test class: does everything run?")
    figures: Switch = override(EvalArgs, "figures", aliases=["visualize"])


def resolve(args: Args) -> Args:
    """Fill every quirk left open by what --protocol says, and check what needs two options to check."""
    paper = args.protocol == "paper"
    filled = {name: values[paper] for name, values in QUIRKS.items() if getattr(args, name) in (None, "auto")}
    both = set(args.train_classes) & set(args.test_classes)
    if both and not args.eval_data_path:
        raise UserError(f"--test-classes: {', '.join(sorted(both))} would be trained on and tested on")
    if ("long" in args.normal_templates) != ("long" in args.anomaly_templates):
        raise UserError("--normal-templates and --anomaly-templates: 'long' for both or for none")
    if args.prompt_learner == "zero" and args.adapter == "none" and args.epochs:
        raise UserError("--prompt-learner zero with --adapter none trains nothing: add --epochs 0")
    return replace(args, **filled)  # type: ignore[arg-type]
