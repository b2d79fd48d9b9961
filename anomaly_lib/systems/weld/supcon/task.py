"""What V4 trains, the data it sees, its objective, and its answers for runs."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.detect.choice import Choice
from anomaly_lib.engine.amp import autocast_for
from anomaly_lib.losses.supcon_extra import FeatureQueue, mixed_loss, mixup, supcon_with_negatives
from anomaly_lib.models.adapters import add_adapters
from anomaly_lib.models.weld.quad_config import MODALITIES
from anomaly_lib.models.weld.supcon_quad import QuadModal, freeze
from anomaly_lib.models.weld.tasks import NextStep, Reconstruction
from anomaly_lib.models.weld.token_scale import TokenMoments
from anomaly_lib.systems.weld.data.demo import weld_demo_runs
from anomaly_lib.systems.weld.data.folds import fold_splits
from anomaly_lib.systems.weld.data.manifest import WeldRun, assign_splits, read_manifest
from anomaly_lib.systems.weld.encoders import photo_vectors
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.supcon.options import Args


class QuadTask(nn.Module):
    """The model, the heads of its side tasks and the encoders' blocks that learn: what is trained and saved."""

    def __init__(
        self, model: QuadModal, *, reconstruct: bool, next_step: bool, tops: nn.ModuleDict | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.reconstruction = Reconstruction(model) if reconstruct else None
        self.next_step = NextStep(model.sensor) if next_step else None
        self.tops = tops  # the features that the model reads are `features.seen_by(task.tops)`


def open_runs(args: Args, choice: Choice | None = None) -> list[WeldRun]:
    """The runs of the options, or of other data that `choice` names, with every class in TRAIN.

    A split made for one-class training is redrawn, configurations kept together.
    """
    other = choice and choice.data_path
    if not (other or args.data_path):
        runs = weld_demo_runs(
            train=args.demo_train,
            good=args.demo_good,
            per_defect=args.demo_defects,
            supervised=True,
            seed=args.demo_seed,
        )
    else:
        runs = read_manifest(other or str(args.data_path), on_error=(choice or args).on_error)
    if args.fold and not other:
        return fold_splits(runs, folds=args.folds, fold=args.fold, supervised=True)
    trained = {run.class_name for run in runs if run.split == "train"}
    return runs if len(trained) > 1 else assign_splits(runs, seed=args.demo_seed, train_ratio=0.8, supervised=True)


def build(args: Args, features: WeldFeatures) -> QuadTask:
    """The trainable part, for the tokens of these frozen encoders."""
    encoders = features.encoders
    model = QuadModal(
        args,
        video_dim=encoders.video.width,
        image_dim=encoders.image.width * len(encoders.branches),
        audio_dim=encoders.audio.width,
        **encoders.clocks,
    )
    if args.adapters != "none":
        add_adapters(model, ["fusion.project", "fusion.attend"], kind=args.adapters, rank=args.adapter_rank)
    task = QuadTask(
        model,
        reconstruct=args.reconstruct_weight > 0,
        next_step=args.next_step_weight > 0,
        tops=encoders.learning_copy(args),
    )
    return task.to(features.device)


def apply_freeze(args: Args, task: QuadTask, epoch: int) -> list[str]:
    """The freeze policy of this epoch; adapters always learn."""
    active = not args.freeze_encoders_epochs or epoch < args.freeze_encoders_epochs
    freeze(task.model, args.freeze if active else "none")
    for name, parameter in task.model.named_parameters():
        if args.adapters != "none" and (".down" in name or ".up" in name):
            parameter.requires_grad_(True)
        elif args.adapters != "none" and ".base." in name:
            parameter.requires_grad_(False)
    return [name for name, parameter in task.named_parameters() if parameter.requires_grad]


def quad_batch(features: WeldFeatures, runs: Sequence[WeldRun], *, training: bool = False) -> dict[str, Tensor]:
    """Tokens as `QuadModal` takes them: one mean vector per photo, branches side by side.

    `training`: inputs are augmented first, where the options say so.
    """
    batch = features.batch(runs, training=training)
    named = {**batch, "images": photo_vectors(batch["images"]), "images_mask": batch["views"]}
    return {name: value for name, value in named.items() if name != "views"}


def quad_batches(features: WeldFeatures, runs: Sequence[WeldRun], *, size: int = 16) -> Iterator[dict[str, Tensor]]:
    """All runs in their order, a few at a time: at real size one run is 5 MB of tokens."""
    for start in range(0, len(runs), size):
        yield quad_batch(features, runs[start : start + size])


@torch.no_grad()
def fit_scale(task: QuadTask, features: WeldFeatures, runs: Sequence[WeldRun]) -> None:
    """Token statistics of the training runs that have each modality, gathered a few runs at a time."""
    gathered = {name: TokenMoments() for name in task.model.scale}
    for part in quad_batches(features, runs):
        for name, moments in gathered.items():
            moments.add(part[name][part["present"][:, MODALITIES.index(name)].bool()])
    for name, scale in task.model.scale.items():
        scale.take(gathered[name])  # type: ignore[operator]


def classes_of(runs: Sequence[WeldRun], device: torch.device | str = "cpu") -> Tensor:
    """Class index [N] of each run; 0 is good."""
    return torch.tensor([run.class_label for run in runs], device=device)


def objective(
    args: Args, task: QuadTask, batch: dict[str, Tensor], labels: Tensor, queue: FeatureQueue | None
) -> dict[str, Tensor]:
    """Every term by name and their weighted sum `loss`."""
    model = task.model
    out = model(batch)
    order, weight = torch.arange(len(labels), device=labels.device), 1.0
    if args.mixup > 0:
        mixed, order, weight = mixup(out["embedding"], args.mixup)
        out = {**out, **model.heads(mixed)}

    def contrast(y: Tensor) -> Tensor:
        return supcon_with_negatives(
            out["features"],
            y,
            temperature=args.temperature,
            queue=queue,
            hard_negatives=args.hard_negatives,
            hardness=args.hardness,
        )

    terms = {"supcon": mixed_loss(contrast, labels, order, weight)}
    total = args.supcon_weight * terms["supcon"]
    if args.loss_type == "combined":
        terms["ce"] = mixed_loss(lambda y: F.cross_entropy(out["logits"], y), labels, order, weight)
        terms["score"] = mixed_loss(
            lambda y: F.binary_cross_entropy_with_logits(out["anomaly_score"], (y != 0).float()), labels, order, weight
        )
        total = total + args.ce_weight * terms["ce"] + args.score_weight * terms["score"]
    if task.reconstruction is not None:
        terms["reconstruct"] = task.reconstruction(out["embedding"], batch)
        total = total + args.reconstruct_weight * terms["reconstruct"]
    if task.next_step is not None:
        terms["next_step"] = task.next_step(model.sensor, batch)
        total = total + args.next_step_weight * terms["next_step"]
    if queue is not None:
        queue.push(out["features"], labels)
    return {**terms, "loss": total}


@torch.no_grad()
def encode_runs(
    task: QuadTask,
    features: WeldFeatures,
    runs: Sequence[WeldRun],
    *,
    batch_size: int,
    precision: str = "fp32",
    need_weights: bool = False,
) -> dict[str, Tensor]:
    """`features` [N, D], `logits` [N, C], `anomaly_score` [N], `present` [N, 4] of N runs, in eval mode, on the CPU.

    With `need_weights` also `attention.<modality>` [N, queries, L].
    """
    was_training, features = task.training, features.seen_by(task.tops)
    task.eval()
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(runs), batch_size):
        batch = quad_batch(features, runs[start : start + batch_size])
        with autocast_for(features.device, precision):
            out = task.model(batch, need_weights=need_weights)
        answer = {name: value.float() for name, value in out.items() if name != "embedding"}
        parts.append({name: value.cpu() for name, value in (answer | {"present": batch["present"]}).items()})
    task.train(was_training)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
