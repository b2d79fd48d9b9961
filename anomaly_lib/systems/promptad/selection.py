"""Which epoch is kept: the last, the best on pasted defects, or (an oracle) the best on the test set."""

from dataclasses import dataclass, replace

from torch import Tensor

from anomaly_lib.data.views import with_views
from anomaly_lib.engine.checkpoint import TrainState
from anomaly_lib.metrics import auroc, pixel_auroc
from anomaly_lib.models.promptad.model import PromptAD
from anomaly_lib.models.promptad.scores import Branches, ImageFeatures, Scoring, scoring_of
from anomaly_lib.systems.promptad.data import TaskData, synthetic_anomalies, truth_of
from anomaly_lib.systems.promptad.features import Towers
from anomaly_lib.systems.promptad.options import Args

SYNTHETIC_PER_IMAGE = 12


@dataclass
class Judge:
    """Scores the present contexts on a fixed set of images whose features are known."""

    name: str
    features: ImageFeatures
    visual: Branches  # its visual part never changes
    scoring: Scoring
    labels: Tensor
    masks: Tensor | None

    def __call__(self, model: PromptAD) -> float:
        """Image AUROC for cls, pixel AUROC for seg."""
        model.keep_text_features()
        textual = model.textual(self.features.for_task(self.scoring.config.task)).reshape(self.visual.textual.shape)
        if self.scoring.config.task == "cls" or self.masks is None:
            return auroc(self.scoring.image_scores(replace(self.visual, textual=textual)), self.labels)
        return pixel_auroc(self.scoring.predict(replace(self.visual, textual=textual)).map, self.masks)


def make_judge(args: Args, data: TaskData, towers: Towers, model: PromptAD) -> Judge | None:
    """The test set (best-on-test, or --eval-every), support images with pasted defects (val), or nobody (last)."""
    if args.select == "val":
        good = with_views(data.support, "mild")
        items = good + synthetic_anomalies(data.support, SYNTHETIC_PER_IMAGE, args.seed)
        name, test = "val", False
    elif args.select == "best-on-test" or args.eval_every:
        items, name, test = data.test, "test", True
    else:
        return None
    features = towers.features(items, test=test)
    labels, masks = truth_of(items, towers.transform(test=test), args.resolution)
    measure = "image_auroc" if args.task == "cls" else "pixel_auroc"
    return Judge(
        f"{name}_{measure}",
        features,
        model.branches(features),
        scoring_of(args, model.normal, towers.tiles),
        labels,
        masks,
    )


def keep_if_better(state: TrainState, model: PromptAD, epoch: int, value: float, select: str) -> None:
    """Remember the contexts of the best epoch: the first best on the test set (as published), the last best on val."""
    best = state.best.get("value")
    if best is None or value > best or (select == "val" and value == best):
        contexts = {name: tensor.detach().clone() for name, tensor in model.learner.state_dict().items()}
        state.best = {"value": float(value), "epoch": epoch, "contexts": contexts}
