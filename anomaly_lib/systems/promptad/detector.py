"""A trained PromptAD: scores, maps and decisions of images, with the fusion it was trained with or any other."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from anomaly_lib.data import ImageTransform, Item
from anomaly_lib.detect.calibration import decision_from, decision_of_views
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.contract import Facts, Selection
from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.images import ImageDetector
from anomaly_lib.detect.scores import Scores
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.checkpoint import Checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.fusion import REFERENCE_MODES
from anomaly_lib.models.promptad.config import BRANCHES
from anomaly_lib.models.promptad.model import PromptAD
from anomaly_lib.models.promptad.scores import Branches, scoring_of
from anomaly_lib.ops.tiles import Tiles
from anomaly_lib.systems.promptad.data import open_task, test_items, truth_of
from anomaly_lib.systems.promptad.features import Towers
from anomaly_lib.systems.promptad.options import ALL, Args
from anomaly_lib.types import Prediction

SYSTEM = "promptad"
ORACLE = "oracle: epoch chosen on the test set"
EXTENDED = "extension: the fused score of pasted defects was a part of the loss"
HELD = 2**29  # bytes of features that are held at a time while a data set is scored
# Two runs that agree in these use the same frozen towers and transforms.
TOWER_OPTIONS = (
    "backbone", "weights", "pretrained_dataset", "image_size", "visual_backbone", "visual_weights", "memory_layers",
    "memory_tap", "reader_resize", "test_color", "precision", "cache", "cache_dir", "tile", "overlap", "keep_aspect",
)  # fmt: skip


class PromptADDetector(ImageDetector):
    """What ``anomaly_lib.load(checkpoint)`` answers for PromptAD.

    ``predict(images)`` -> ``score`` [B], ``map`` [B, R, R], ``parts``: what each branch says ([B] for cls, [B, R, R]
    for seg). ``args`` are the options in force, ``model.config`` those of the training.
    """

    system = SYSTEM
    honours = frozenset({"dataset", "obj", "on_error"})

    def __init__(self, model: PromptAD, towers: Towers, args: Args, decision: Decision | None) -> None:
        self.model, self.towers, self.args, self.decision = model, towers, args, decision
        self.scoring = scoring_of(args, model.normal, towers.tiles)
        self.together = max(1, PromptADDetector.together // len(towers.tiles))
        self.transform, self.device = towers.transform(test=True), towers.device
        notes = [ORACLE] if args.select == "best-on-test" else []
        trained = model.config.fusion_mode
        if args.fusion_mode != trained:
            effect = "its epoch was chosen for that fusion" if notes else "the contexts do not depend on it"
            effect = "its contexts were trained for that fusion" if args.fusion_in_loss else effect
            notes.append(f"scored with fusion {args.fusion_mode}, trained with {trained}: {effect}")
        notes += [EXTENDED] if args.fusion_in_loss else []
        shown = {"epochs": args.epochs, "seed": args.seed, "fusion": args.fusion_mode}
        self.facts = Facts(weights=towers.weights, notes=notes, shown=shown)

    @property
    def class_name(self) -> str:
        """The class it was trained on, or "all"."""
        return ALL if self.args.obj == ALL else self.model.class_name

    @property
    def class_names(self) -> list[str]:
        return [self.class_name]

    def with_fusion(self, mode: str) -> "PromptADDetector":
        """The detector with another fusion, and the decision that follows from it."""
        if mode == self.args.fusion_mode:
            return self
        weights = self.args.fusion_weights if mode == "weighted" else [1.0, 1.0]
        args = replace(self.args, fusion_mode=mode, fusion_weights=weights)
        if mode in REFERENCE_MODES and self.model.normal is None:
            raise UserError(f"fusion_mode={mode}: needs support scores, which a released PromptAD checkpoint lacks")
        return PromptADDetector(self.model, self.towers, args, decision_of(self.model, args, self.towers.tiles))

    def selection(self, items: Sequence[Item], choice: Choice | None = None) -> Selection:
        """These images, under the name of the run's data."""
        choice = choice or Choice()
        name = f"{choice.dataset or self.args.dataset} {self.class_name} k={self.args.shot} {self.args.task}"
        return Selection(name, items, choice)

    def branches(self, items: Sequence[Item], *, together: int) -> Branches:
        """Branch scores of the images of a data set before fusion, `together` of them encoded at a time.

        The first image tells how large features are, in tiles for instance, and so how many are held at a time.
        """
        parts, done, step = [], 0, 1
        while done < len(items):
            features = self.towers.features(items[done : done + step], test=True, together=together)
            parts.append(self.model.branches(features))
            done, step = done + step, max(1, HELD * step // features.size_in_bytes)
        return Branches.concatenate(parts)

    def scores_from(self, selection: Selection, branches: Branches) -> Scores:
        """Scores of these images from their branch scores; each branch stands beside their fusion."""
        prediction = self.scoring.predict(branches)
        masks = truth_of(selection.items, self.transform, self.args.resolution)[1]
        parts = {name: prediction.parts[name].cpu().numpy() for name in BRANCHES}
        return self.scores_of(selection.name, selection.items, prediction, masks, parts=parts)

    def predict_batch(self, images: Tensor) -> Prediction:
        return self.scoring.predict(self.model.branches(self.towers.encode(self.towers.tiles.cut(images))))

    def trained_on(self) -> Sequence[Item]:
        """Its support images."""
        return open_task(self.args).support

    def _items(self, choice: Choice) -> Selection:
        args = replace(
            self.args,
            dataset=choice.dataset or self.args.dataset,
            data_path=choice.data_path or self.args.data_path,
            obj=choice.obj or self.class_name,
            on_error=choice.on_error,
        )
        return self.selection(test_items(args), choice)

    def _score(self, selection: Selection) -> Scores:
        branches = self.branches(selection.items, together=selection.choice.batch_size)
        return self.scores_from(selection, branches)

    def predict_through(self, seen: Callable[[ImageTransform], Tensor]) -> Prediction:
        return self.scoring.predict(self.model.branches(self.towers.encode_seen(seen)))


def decision_of(model: PromptAD, args: Args, tiles: Tiles | None = None) -> Decision | None:
    """What support images promise that the memory lacks, under the fusion of `args`; None where none are known."""
    if model.normal is None:
        return None
    found = scoring_of(args, model.normal, tiles).predict(model.normal)
    if args.shot == 1:
        return decision_of_views(found, of="mild views of the support images, one a class")
    return decision_from(found, args.false_alarms, of="support images, each left out of the memory")


def prompt_name(class_name: str) -> str:
    """What prompts call the class."""
    return "object" if class_name == ALL else class_name


def load(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    weights: str | None = None,
    which: str = "auto",
    shared: dict[tuple[str, ...], Towers] | None = None,
) -> PromptADDetector:
    """The detector of a PromptAD checkpoint, ours or its authors'.

    Pass one dict as `shared` to load many checkpoints on one set of frozen towers.
    """
    if which == "ema":
        raise UserError(f"{checkpoint.path}: PromptAD keeps no averaged parameters (ema)")
    extra, state = checkpoint.extra, checkpoint["model"]
    if "decision" not in extra:
        raise UserError(f"{checkpoint.path}: this training is not finished; run its command again to continue it")
    args = Args.from_saved(checkpoint.args | ({} if weights is None else {"weights": weights}))
    key = tuple(str(getattr(args, name)) for name in TOWER_OPTIONS)
    towers = (shared or {}).get(key) or Towers(args, pick_device(device))
    if shared is not None:
        shared[key] = towers
    checkpoint.check_weights(towers.weights)
    model = PromptAD(args, towers=towers, class_name=prompt_name(extra["class_name"]))
    model.remember([state[f"feature_gallery{index}"] for index, _ in enumerate(towers.taps, start=1)])
    released = extra["normal"] is None  # it has no contexts, and inference needs none
    model.load_state_dict(state, strict=not released)
    model.normal = None if released else Branches.from_plain(extra["normal"], towers.device)
    return PromptADDetector(model.eval(), towers, args, Decision.from_plain(extra["decision"]))
