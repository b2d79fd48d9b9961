"""A detector trained on one HDMAP domain, scored on it and on others."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.contract import Selection
from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.scores import Scores
from anomaly_lib.engine.checkpoint import Checkpoint
from anomaly_lib.systems.detectors.detector import ClassicalDetector, restored
from anomaly_lib.systems.detectors.hdmap.demo_maps import demo_split
from anomaly_lib.systems.detectors.hdmap.options import Args
from anomaly_lib.systems.detectors.hdmap.reader import (
    DomainSplit,
    MultiDomainHDMAPDataModule,
    check_domain,
    fit_to,
    grey_of,
)
from anomaly_lib.systems.detectors.hdmap.transfer import (
    domain_results,
    domains_of,
    leak_remark,
    score_domain,
    transfer_figures,
)
from anomaly_lib.types import Prediction


def open_domains(args: Args) -> MultiDomainHDMAPDataModule:
    """The domains of an experiment; without a folder, synthetic ones."""
    return MultiDomainHDMAPDataModule(
        args.data_path,
        source_domain=args.source_domain,
        target_domains="auto" if args.target_domains == ["auto"] else args.target_domains,
        validation_strategy=args.validation_strategy,
        train_batch_size=args.batch_size,
        eval_batch_size=args.batch_size,
        target_size=(args.image_size[0], args.image_size[1]),
        resize_method=args.resize_method,
        seed=args.seed,
        on_error=args.on_error,
        demo=demo_split,
    )


class TransferDetector(ClassicalDetector):
    """A classical detector that decides by the source's threshold. Its figures are those of the transfer."""

    system = "hdmap"
    takes_pixels = False  # maps of floats
    honours = frozenset({"obj", "on_error"})

    def __init__(self, model: nn.Module, args: Args, device: torch.device, decision: Decision | None = None) -> None:
        super().__init__(model, args, device, decision)
        shown = {**self.facts.shown, "source_domain": args.source_domain}
        self.facts = replace(self.facts, notes=leak_remark(args), shown=shown)

    def _items(self, choice: Choice) -> Selection:
        """Test maps of the source and the targets, or (`obj`) of one domain."""
        root = choice.data_path or self.args.data_path
        return self.selection_in(open_domains(replace(self.args, data_path=root, on_error=choice.on_error)), choice)

    def trained_on(self) -> Sequence[Path]:
        """Files of the source's training maps; none where the maps are drawn."""
        return [Path(path) for path in open_domains(self.args).train_data.paths] if self.args.data_path else []

    def selection_in(self, data: MultiDomainHDMAPDataModule, choice: Choice) -> Selection:
        """The maps that the choice stands for, among domains that have been read."""
        domains = domains_of(data)
        if choice.obj is not None:
            known = {one.domain: one for one in domains}
            name = check_domain(choice.obj)
            domains = [known[name] if name in known else data.load(name, "test")]
        return Selection(f"{self.args.model} from {self.args.source_domain}", domains, choice)

    def _score(self, selection: Selection) -> Scores:
        domains: list[DomainSplit] = list(selection.items)
        size = selection.choice.batch_size
        found = [score_domain(self.model, one, self.args, self.device, size) for one in domains]
        images = torch.cat([one.images for one in domains])
        maps = [one.map for one in found if one.map is not None]
        scores = Scores(
            system=self.system,
            name=selection.name,
            scores=torch.cat([one.score for one in found]).numpy(),
            labels=torch.cat([one.labels for one in domains]).numpy(),
            paths=[path for one in domains for path in one.paths],
            groups=[one.domain for one in domains for _ in one.paths],
            averaged=True,
            maps=torch.cat(maps).numpy() if maps else None,
            cell=found[0].cell,
            image=lambda index: picture_of(images[index]),
        )
        if self.decision is not None:
            scores.own = transfer_figures(domain_results(scores, self.decision), self.args.source_domain)
        return scores

    def predict_pictures(self, pictures: Sequence[np.ndarray]) -> Prediction:
        """Scores and maps of pictures, which are brought to size as in training; their first channel is the map."""
        size = self.args.image_size[0], self.args.image_size[1]
        maps = [torch.from_numpy(grey_of(picture))[None, None] for picture in pictures]
        return self.predict_batch(torch.cat([fit_to(one, size, self.args.resize_method) for one in maps]))


def picture_of(image: Tensor) -> np.ndarray:
    """[H, W, 3] uint8 of a map [1, H, W]."""
    picture: np.ndarray = (image.expand(3, -1, -1).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    return picture


def load(
    checkpoint: Checkpoint, *, device: str = "auto", weights: str | None = None, which: str = "auto"
) -> TransferDetector:
    """The detector of a checkpoint, with the source's threshold."""
    return TransferDetector(*restored(checkpoint, Args, device=device, weights=weights, which=which))
