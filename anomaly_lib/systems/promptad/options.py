"""Every option of PromptAD, written once. Quirks of the original default to None = decided by --protocol."""

from dataclasses import dataclass, replace
from typing import Optional, TypeVar

from anomaly_lib.config import Options, Switch, arg, override
from anomaly_lib.errors import UserError
from anomaly_lib.fusion import CALIBRATIONS, FUSIONS
from anomaly_lib.options import BackboneArgs, CacheArgs, DataArgs, EvalArgs, OptimArgs, RunArgs, TrackArgs


@dataclass
class PromptArgs(Options):
    """The learned prompts."""

    n_ctx: int = arg(4, "tokens of a normal context", at_least=1)
    n_ctx_ab: int = arg(1, "tokens of an abnormal context", at_least=1)
    n_pro: int = arg(3, "normal contexts (segmentation: 1)", at_least=1)
    n_pro_ab: int = arg(4, "abnormal contexts", at_least=1)
    class_text: Optional[str] = arg(
        None, "what the class is called in prompts; None = the published name or --obj", type=str
    )
    states: list[str] = arg([], "more anomalous states for the prompts, e.g. 'scratch' or 'torn {}'", type=str)
    lambda1: float = arg(0.001, "weight of the alignment loss", at_least=0)


@dataclass
class ScoreArgs(Options):
    """Scores and their fusion."""

    fusion_mode: str = arg(
        "harmonic", "how textual and visual scores become one; never part of the loss", choices=list(FUSIONS)
    )
    fusion_weights: list[float] = arg(
        [1.0, 1.0], "weights (textual, visual) of --fusion-mode weighted", type=float, at_least=0
    )
    calibration: str = arg(
        "none", "put both branches on one scale with support scores before fusing", choices=["none", *CALIBRATIONS]
    )
    resolution: int = arg(400, "side of maps and masks", at_least=8)
    sigma: float = arg(4.0, "Gaussian smoothing of segmentation maps, in pixels", at_least=0)
    image_max: str = arg(
        "map",
        "the visual image score is the maximum of the upsampled map or of the patch grid",
        choices=["map", "grid"],
    )
    memory_layers: list[int] = arg(
        [], "blocks whose patches are remembered; empty = 2 7 of 12, scaled to depth", type=int
    )
    memory_views: str = arg(
        "none", "also remember turned or mirrored support images", choices=["none", "flips", "rotations", "all"]
    )
    visual_backbone: Optional[str] = arg(
        None, "another frozen encoder for the visual branch, e.g. timm:vit_small_patch14_dinov2", type=str
    )
    visual_weights: Optional[str] = arg(None, "weights of --visual-backbone; as --weights", type=str)
    threshold_quantile: Optional[float] = arg(
        None,
        "quantile of leave-one-out support scores that decides; None = 0.5, or 1 for a single support image",
        type=float,
        at_least=0,
        at_most=1,
    )


@dataclass
class QuirkArgs(Options):
    """Quirks of the original (None = decided by --protocol)."""

    logit_scale: Optional[str] = arg(
        None, "temperature: the stored log value (raw, as published) or its exponential, as CLIP was trained", type=str,
        choices=["exp", "raw"],
    )  # fmt: skip
    memory_tap: Optional[str] = arg(
        None, "remember block outputs (clean) or the state after the next attention (paper: an aliasing bug)", type=str,
        choices=["block_out", "post_attn_next"],
    )  # fmt: skip
    test_color: Optional[str] = arg(
        None, "colour order of test images: rgb (clean) or bgr (paper)", type=str, choices=["rgb", "bgr"]
    )
    reader_resize: Optional[int] = arg(
        None, "first squash images to this square, bilinearly; 0 (clean) or 1024 (paper)", type=int, at_least=0
    )
    triplet_axis: Optional[str] = arg(
        None, "axis the segmentation margin sums over: channel (clean) or patch (paper)", type=str,
        choices=["channel", "patch"],
    )  # fmt: skip
    pairing: Optional[str] = arg(
        None, "abnormal prompts: all context pairs (clean) or i mod n (paper, misses pairs)", type=str,
        choices=["all", "modulo"],
    )  # fmt: skip


ALL = "all"  # --obj all: one model for every class of the data

QUIRKS: dict[str, tuple[object, object]] = {
    # The published learning rate was tuned with the stored value, so both protocols keep it; exp is there to be tried.
    "logit_scale": ("raw", "raw"),
    "memory_tap": ("block_out", "post_attn_next"),
    "test_color": ("rgb", "bgr"),
    "reader_resize": (0, 1024),
    "triplet_axis": ("channel", "patch"),
    "pairing": ("all", "modulo"),
    "select": ("last", "best-on-test"),
}
"""option: (its value under --protocol clean, under --protocol paper)."""


@dataclass
class Args(
    QuirkArgs, ScoreArgs, PromptArgs, CacheArgs, EvalArgs, OptimArgs, BackboneArgs, DataArgs, TrackArgs, RunArgs
):
    """PromptAD: few-shot anomaly detection with learned prompts and a patch memory."""

    task: str = arg("cls", "cls = image scores, seg = pixel maps", choices=["cls", "seg"])
    obj: Optional[str] = arg(
        None, "class to train on; None = the only class, or the demo's first", type=str, aliases=["class-name"]
    )
    shot: int = arg(1, "normal images to learn from (k)", at_least=1, aliases=["k-shot"])
    shots: str = arg(
        "auto",
        "which ones: auto (published list where it fits, else by seed), seed, promptad, or a list file",
        type=str,
    )
    image_size: Optional[int] = arg(
        None, "side of the network's input; None = the backbone's", type=int, aliases=["img-resize", "img-cropsize"]
    )
    pretrained_dataset: Optional[str] = arg(None, "tag of the published weights, e.g. laion400m_e32", type=str)
    epochs: int = override(OptimArgs, "epochs", aliases=["Epoch"])
    batch_size: int = override(OptimArgs, "batch_size", 400)
    learning_rate: float = override(OptimArgs, "learning_rate", 0.002)
    weight_decay: float = override(OptimArgs, "weight_decay", 5e-4, help="L2 decay of the contexts")
    momentum: float = arg(0.9, "momentum of SGD", at_least=0, at_most=1)
    min_lr: float = arg(1e-5, "learning rate at the end of the cosine schedule", at_least=0)
    seed: int = override(RunArgs, "seed", 111)
    gpu_id: Optional[int] = arg(None, "the original's spelling of --device cuda:N", type=int, at_least=0)
    use_cpu: Switch = arg(False, "the original's spelling of --device cpu")
    save_every: int = override(RunArgs, "save_every", 10)
    output_dir: Optional[str] = override(RunArgs, "output_dir", aliases=["root-dir"])
    figures: Switch = override(EvalArgs, "figures", aliases=["vis"])
    eval_every: int = arg(
        0, "score the test set every so many epochs (from cached features); 0 = at the end", at_least=0
    )
    select: str = override(
        EvalArgs,
        "select",
        "auto",
        help="which epoch is kept; auto = by --protocol; best-on-test is labelled oracle wherever it is printed",
        choices=["auto", "last", "val", "best-on-test"],
    )


@dataclass
class SegArgs(Args):
    """PromptAD at pixel level."""

    task: str = override(Args, "task", "seg")
    n_pro: int = override(PromptArgs, "n_pro", 1)


A = TypeVar("A", bound=Args)


def resolve(args: A) -> A:
    """Fill every quirk left open by what --protocol says, and check what needs two options to check."""
    paper = args.protocol == "paper"
    filled = {name: values[paper] for name, values in QUIRKS.items() if getattr(args, name) in (None, "auto")}
    if args.fusion_mode == "weighted" and len(args.fusion_weights) != 2:
        raise UserError(f"--fusion-weights: two numbers (textual, visual), got {args.fusion_weights}")
    if args.memory_layers and len(set(args.memory_layers)) != len(args.memory_layers):
        raise UserError(f"--memory-layers: every block once, got {args.memory_layers}")
    if args.threshold_quantile is None:
        # A memory of k - 1 lies farther from the k-th than k images do from a new one; views of one image lie nearer.
        filled["threshold_quantile"] = 1.0 if args.shot == 1 else 0.5
    return replace(args, **filled, device=_device(args), gpu_id=None, use_cpu=False)  # type: ignore[arg-type]


def _device(args: Args) -> str:
    """--device, or what the original's --use-cpu and --gpu-id mean by it."""
    if args.gpu_id is None and not args.use_cpu:
        return args.device
    wanted = "cpu" if args.use_cpu else f"cuda:{args.gpu_id}"
    if args.device not in ("auto", wanted):
        raise UserError(f"--device {args.device}: --use-cpu or --gpu-id means {wanted}; give one of them")
    return wanted
