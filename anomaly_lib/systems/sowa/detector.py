"""A trained SOWA: which images it is scored on, the line where its score is made, single images."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomaly_lib.backbones.identity import weights_of
from anomaly_lib.data import Item, class_names
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.contract import Facts, Selection
from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.images import ImageDetector
from anomaly_lib.detect.scores import Scores
from anomaly_lib.engine.amp import autocast_for, pick_device
from anomaly_lib.engine.checkpoint import Checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.models.sowa.model import AnomalyCLIP
from anomaly_lib.models.sowa.scores import Memory, detect
from anomaly_lib.models.sowa.text import OneClass
from anomaly_lib.ops.predictions import stacked
from anomaly_lib.systems.sowa.data import (
    TestData,
    known,
    names_of,
    open_test,
    open_train,
    support_items,
    tested_classes,
    tested_place,
)
from anomaly_lib.systems.sowa.decide import NO_NORMAL, Decisions, joined
from anomaly_lib.systems.sowa.options import Args
from anomaly_lib.systems.sowa.scoring import remember, score_items
from anomaly_lib.systems.sowa.taps import Taps, frozen_clip, make_taps
from anomaly_lib.types import Prediction

ORACLE = "oracle: epoch chosen on the test classes"
TRANSDUCTIVE = "transductive: image scores are scaled over the test set"


class SowaDetector(ImageDetector):
    """Adapters and prompts over a frozen CLIP, zero-shot or with remembered normal images of each class.

    `memories` serve `predict`; `score` remembers anew, because how many images of which data is a matter of choice.
    """

    system = "sowa"
    honours = frozenset({"dataset", "obj", "shot", "on_error"})

    def __init__(
        self,
        model: AnomalyCLIP,
        taps: Taps,
        args: Args,
        *,
        memories: Mapping[str, Memory],
        decisions: Decisions,
        epochs: int,
    ) -> None:
        self.model, self.taps, self.args = model.eval(), taps, args
        self.memories, self.decisions, self.decision = dict(memories), decisions, decisions.whole
        self.undecided = NO_NORMAL
        self.transform, self.device = taps.transform, taps.device
        self.together = max(1, SowaDetector.together // len(taps.tiles))
        notes = [ORACLE] if args.select == "best-on-test" else []
        self.facts = Facts(weights_of(taps.clip), notes, {"epochs": epochs, "seed": args.seed})
        self.alone = replace(args, score_scaling="support")  # one image has no test set to be scaled over
        known = set(self.memories) or set(decisions.each)
        self.class_name = next(iter(known)) if len(known) == 1 else ""

    # -- many images ------------------------------------------------------------------------------------------------

    def _items(self, choice: Choice) -> Selection:
        """The classes the run tests on, or those of other data; ``shot`` may differ from training."""
        args, path = self.args, choice.data_path
        dataset, root = tested_place(args)
        if path:
            dataset, root = "meta" if (Path(path) / "meta.json").is_file() else "mvtec", path
        dataset = choice.dataset or dataset
        if choice.obj:
            classes = known("obj", [choice.obj], names_of(dataset, root))
        else:
            classes = names_of(dataset, root) if path else tested_classes(args)
        shot = args.shot if choice.shot is None else choice.shot
        fast = args.fast_dev_run and not path
        data = open_test(dataset, root, classes, shot=shot, on_error=choice.on_error, fast=fast)
        return self.select(data, dataset, replace(choice, shot=shot))

    def select(self, data: TestData, dataset: str, choice: Choice) -> Selection:
        """Images that have been opened as a selection; `choice` names the number of support images."""
        return Selection(f"{dataset} k={choice.shot}", data.items, choice, beside=data)

    def _score(self, selection: Selection) -> Scores:
        data, choice, args = selection.beside, selection.choice, self.args
        items: list[Item] = data.items
        shot = int(choice.shot or 0)
        support = support_items(data.normal, shot, args.seed) if shot else {}
        memories = remember(self.model, self.taps, support)
        found = score_items(self.model, self.taps, items, memories, args, batch_size=choice.batch_size)
        known_truth = all(item.has_truth for item in items)
        masks = stacked((self.taps.mask(item)[None] for item in items), len(items)) if known_truth else None
        notes = [TRANSDUCTIVE] if memories and args.score_scaling == "transductive" else []
        notes += [f"skipped {one['path']}: {one['reason']}" for one in data.skipped]
        notes += [] if self.decision is None else self._why_undecided(selection)
        return self.scores_of(selection.name, items, found, masks, averaged=True, notes=notes, facts={"k": shot})

    def decision_for(self, selection: Selection) -> Decision | None:
        """The stored decision of these classes; it belongs to single images and the run's number of support images."""
        if self.decision is None or self._why_undecided(selection):
            return None
        return self._decision_of(class_names(selection.items))

    def _decision_of(self, names: Sequence[str]) -> Decision | None:
        """The decision for images of these classes; None where one of them has no normal data."""
        each = self.decisions.each
        if each and not set(names) <= set(each):
            return None
        return each[names[0]] if len(names) == 1 < len(each) else self.decision

    def _why_undecided(self, selection: Selection) -> list[str]:
        """Why the stored decision does not hold for these samples; [] where it does."""
        shot, names = int(selection.choice.shot or 0), class_names(selection.items)
        unknown = [name for name in names if self.decisions.each and name not in self.decisions.each]
        if shot != self.args.shot:
            return [f"no decision: the stored one is for k={self.args.shot}, these scores are for k={shot}"]
        if unknown:
            return [f"no decision: no normal data of {', '.join(unknown)}"]
        if shot and self.args.score_scaling == "transductive":
            return ["no decision: the stored one is for single images, these scores are scaled over the test set"]
        return []

    @property
    def class_names(self) -> list[str]:
        return [self.class_name] if self.class_name else list(self.memories or self.decisions.each)

    # -- single images ----------------------------------------------------------------------------------------------

    def predict(self, inputs: Any, *, class_name: str | None = None) -> Prediction:
        """As every detector; each image stands alone. `class_name`: whose support images and prompts to use, where the
        detector remembers several classes."""
        detector = self
        if class_name is not None:
            detector = self.of_class(class_name)
        return super(SowaDetector, detector).predict(inputs)

    def of_class(self, name: str) -> "SowaDetector":
        if self.memories and name not in self.memories:
            raise UserError(f"obj={name}: this detector remembers {', '.join(self.memories)}")
        detector = copy(self)
        detector.class_name, detector.decision = name, self._decision_of([name])
        return detector

    def record_of(self, decision: Decision) -> dict[str, Any]:
        """Beside the decisions of the other classes; without a class for all that may come."""
        each = {**self.decisions.each, self.class_name: decision} if self.class_name else {}
        return Decisions(each, decision if len(each) <= 1 else joined(each)).plain()

    def trained_on(self) -> Sequence[Item]:
        """Normal images of the training classes, and the support images."""
        data = open_test(*tested_place(self.args), tested_classes(self.args), shot=self.args.shot, on_error="skip")
        support = support_items(data.normal, self.args.shot, self.args.seed) if self.args.shot else {}
        learned = [item for item in open_train(self.args)[0] if not item.label]
        return [*learned, *(item for some in support.values() for item in some)]

    @torch.no_grad()
    def predict_batch(self, images: Tensor) -> Prediction:
        """Scores and maps of transformed images [B, 3, H, W]."""
        if self.memories and self.class_name not in self.memories:
            raise UserError(f"this detector remembers {', '.join(self.memories)}: say which with obj=")
        taps = self.model.visual_encoder.observe(self.taps.tiles.cut(images.to(self.device)))
        with autocast_for(self.device, self.args.precision):
            return self.taps.tiles.joined(
                detect(self.model, taps, OneClass(self.class_name), self.memories, self.alone)
            )


def load(
    checkpoint: Checkpoint, *, device: str = "auto", weights: str | None = None, which: str = "auto"
) -> SowaDetector:
    """The detector of one of our checkpoints, or of one that SOWA's authors released."""
    if which not in ("auto", "raw"):
        raise UserError(f"which={which}: sowa keeps no averaged (ema) parameters")
    args: Args = Args.from_saved(checkpoint.args)
    clip = frozen_clip(args if weights is None else replace(args, weights=weights))
    where = pick_device(device)
    clip.to(where)
    checkpoint.check_weights(weights_of(clip))
    model = AnomalyCLIP(clip, args).to(where)
    model.load_state_dict(checkpoint["model"])
    extra = checkpoint.extra
    return SowaDetector(
        model,
        make_taps(args, clip),
        args,
        memories={name: Memory.restore(state) for name, state in extra.get("memories", {}).items()},
        decisions=Decisions.from_plain(extra),
        epochs=int(checkpoint.get("epoch", 0)),
    )
