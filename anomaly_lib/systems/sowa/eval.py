"""What a trained SOWA is worth, and the detector that comes out of a checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly_lib.backbones.clip import ClipBackbone, create_clip
from anomaly_lib.backbones.identity import weight_remarks, weights_of
from anomaly_lib.data import Item, class_names
from anomaly_lib.data.base import load_pixels
from anomaly_lib.data.images import read_image
from anomaly_lib.detect.contract import EvaluateArgs, Evaluation
from anomaly_lib.detect.tables import Cell, Table
from anomaly_lib.engine.amp import autocast_for, pick_device
from anomaly_lib.engine.checkpoint import check_weights, load_checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.metrics import image_metrics, pixel_metrics
from anomaly_lib.models.sowa.keys import is_released, read_released
from anomaly_lib.models.sowa.model import AdapterOptions, AnomalyCLIP, PromptOptions
from anomaly_lib.models.sowa.scores import Memory, build_memory, detect, scale_transductively
from anomaly_lib.models.sowa.text import LONG_TEMPLATE, PLAIN_SETS
from anomaly_lib.systems.sowa.data import Pictures, Taps, open_test, support_items, taps_of
from anomaly_lib.systems.sowa.options import Args, resolve
from anomaly_lib.types import Prediction

SYSTEM = "sowa"
METRICS = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_aupro")


def make_clip(args: Args) -> ClipBackbone:
    """The frozen CLIP with the taps the adapters read."""
    clip = create_clip(args.backbone, weights=args.weights, image_size=args.image_size, download=args.download)
    clip.answer([*(args.feature_map_idx or taps_of(clip.depth)), "pooled"])
    return clip


def make_model(args: Args, clip: ClipBackbone) -> AnomalyCLIP:
    """The model at the sizes of this run; every hyper-parameter is visible here."""
    long = "long" in args.normal_templates
    templates = LONG_TEMPLATE if long else {"normal": args.normal_templates, "anomaly": args.anomaly_templates}
    taps = [int(name.removeprefix("layer.")) for name in clip.outputs if name.startswith("layer.")]
    warm = args.start == "zero-shot"
    model = AnomalyCLIP(
        clip,
        feature_map_idx=taps,
        temperature=args.temperature,
        vision=args.vision,
        gamma=args.gamma,
        calibrated=args.map_calibration == "logistic",
        adapter=AdapterOptions(
            kind=args.adapter,
            window_size=args.window_size,
            depth=args.depth,
            num_heads=args.num_heads,
            cpb_dim=args.cpb_dim,
            value_only=args.value_only,
            hidden_features=args.hidden_features,
            drop=args.drop,
            attn_drop=args.attn_drop,
            drop_path=args.drop_path,
            share_weight=args.share_weight,
        ),
        prompt=PromptOptions(
            kind=args.prompt_learner,
            class_names=args.class_names,
            prompt_length=args.prompt_length,
            state_template=templates,
            truncate=args.truncate,
            plain_templates=PLAIN_SETS[args.plain_templates],
            linear=args.text_linear,
            initial_words=args.context_words if warm else "",
        ),
    )
    if warm:
        model.start_from_zero_shot()
    return model.to(next(clip.parameters()).device)


def make_taps(args: Args, clip: ClipBackbone, notice: Callable[[str], None]) -> Taps:
    """Where the model's frozen input comes from: stored taps, or the pictures themselves."""
    return (Pictures if args.vision == "residual" else Taps)(clip, args, notice)


# -- scoring -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def remember(model: AnomalyCLIP, taps: Taps, support: Mapping[str, Sequence[Item]]) -> dict[str, Memory]:
    """The few-shot memory of every class."""
    model.eval()
    memories = {}
    for name, items in support.items():
        memories[name] = build_memory(model, model.visual_encoder.from_taps(taps.rows(taps.fill(items)))[1])
    return memories


@torch.no_grad()
def score_items(
    model: AnomalyCLIP, taps: Taps, items: Sequence[Item], memories: Mapping[str, Memory], args: Args
) -> Prediction:
    """Scores [N] and maps [N, H, W] of ``items``, on the CPU, class by class."""
    model.eval()
    score = torch.zeros(len(items))
    maps: list[Tensor] = [torch.empty(0)] * len(items)
    parts: dict[str, Tensor] = {}
    device = next(model.frozen[0].parameters()).device
    for name in class_names(items):
        places = [i for i, item in enumerate(items) if item.class_name == name]
        keys = taps.fill([items[i] for i in places])
        found = []
        for batch in taps.batches(keys, args.batch_size):
            names = [name] * len(next(iter(batch.values())))
            with autocast_for(device, args.precision):
                found.append(
                    detect(
                        model, batch, names, memories, sigma=args.sigma, stages=args.stages or None,
                        scaling=str(args.score_scaling), image_score=str(args.image_score),
                    )
                )  # fmt: skip
        whole = _join(found)
        if memories and args.score_scaling == "transductive":
            whole = scale_transductively(whole)
        score[places] = whole.score
        for row, place in enumerate(places):
            assert whole.map is not None
            maps[place] = whole.map[row]
        for part, values in whole.parts.items():
            parts.setdefault(part, torch.zeros(len(items)))[places] = values
    return Prediction(score, torch.stack(maps), parts)


def _join(found: Sequence[Prediction]) -> Prediction:
    maps = [one.map for one in found if one.map is not None]
    parts = {name: torch.cat([one.parts[name] for one in found]).float().cpu() for name in found[0].parts}
    return Prediction(torch.cat([one.score for one in found]).float().cpu(), torch.cat(maps).float().cpu(), parts)


def class_metrics(
    prediction: Prediction, items: Sequence[Item], masks: Sequence[Tensor]
) -> dict[str, dict[str, float]]:
    """The seven metrics of every class, then their unweighted mean; pixel ones only where all masks are known."""
    assert prediction.map is not None
    rows: dict[str, dict[str, float]] = {}
    for name in class_names(items):
        places = [i for i, item in enumerate(items) if item.class_name == name]
        image = image_metrics(prediction.score[places], torch.tensor([items[i].label for i in places]))
        row = {f"image_{key}": float(image[key]) for key in ("auroc", "ap", "f1_max")}
        if all(items[i].has_truth for i in places):
            pixel = pixel_metrics(prediction.map[places], torch.stack([masks[i] for i in places]))
            row |= {f"pixel_{key}": float(pixel[key]) for key in ("auroc", "ap", "f1_max", "aupro")}
        rows[name] = row
    mean = {key: [row[key] for row in rows.values() if key in row and not np.isnan(row[key])] for key in METRICS}
    return {**rows, "mean": {key: float(np.mean(values)) for key, values in mean.items() if values}}


def stage_ablation(
    model: AnomalyCLIP,
    taps: Taps,
    items: Sequence[Item],
    memories: Mapping[str, Memory],
    args: Args,
    masks: Sequence[Tensor],
) -> dict[str, dict[str, float]]:
    """Mean metrics with the text map of one stage alone, for every stage, then with all of them."""
    count = len(model.visual_encoder.tap_names)
    chosen = {f"stage {n + 1} ({model.visual_encoder.tap_names[n]})": [n] for n in range(count)} | {"all": []}
    return {
        label: class_metrics(score_items(model, taps, items, memories, replace(args, stages=stages)), items, masks)[
            "mean"
        ]
        for label, stages in chosen.items()
    }


def metric_table(rows: Mapping[str, Mapping[str, float]], notes: Sequence[str]) -> Table:
    """The seven metrics in per cent, a row per class and the mean."""
    lines: list[dict[str, Cell]] = [
        {"class": name, **{key: 100 * value for key, value in row.items()}} for name, row in rows.items()
    ]
    return Table(["class", *METRICS], lines, list(notes))


# -- the detector of a checkpoint --------------------------------------------------------------------------------------


@dataclass
class Decision(Prediction):
    """A prediction with the decision ``score >= threshold``."""

    threshold: float = float("nan")

    @property
    def anomalous(self) -> Tensor:
        """[B] bool."""
        return self.score >= self.threshold


class Detector:
    """What ``anomaly_lib.load(checkpoint)`` answers for SOWA."""

    def __init__(
        self, model: AnomalyCLIP, taps: Taps, args: Args, memories: dict[str, Memory], threshold: float
    ) -> None:
        self.model, self.taps, self.args, self.memories = model.eval(), taps, args, memories
        self.threshold: float | None = threshold
        self.transform = taps.transform

    @torch.no_grad()
    def predict(self, images: Any, *, class_name: str | None = None) -> Decision:
        """Score decoded pictures [H, W, 3], files, or a transformed batch [B, 3, H, W]; each image stands alone.

        ``class_name`` names the support images (and the prompts) to use; None = the only ones there are.
        """
        clip = self.model.frozen[0]
        batch = images if isinstance(images, Tensor) else self._stack(images)
        batch = batch.to(next(clip.parameters()).device)
        name = class_name or (next(iter(self.memories)) if len(self.memories) == 1 else "")
        if self.memories and name not in self.memories:
            raise UserError(f"this detector remembers {', '.join(self.memories)}: say which with class_name=...")
        with autocast_for(batch.device, self.args.precision):
            found = detect(
                self.model,
                self.model.visual_encoder.observe(batch),
                [name] * len(batch),
                self.memories,
                sigma=self.args.sigma,
                stages=self.args.stages or None,
                image_score=str(self.args.image_score),
            )
        return Decision(found.score, found.map, found.parts, threshold=self.threshold or float("nan"))

    def _stack(self, images: Any) -> Tensor:
        single = isinstance(images, (str, Path, np.ndarray)) or not hasattr(images, "__len__")
        pictures = [images] if single else list(images)
        if not pictures:
            raise UserError("predict() got no images")
        return torch.stack([self.transform(read_image(p) if isinstance(p, (str, Path)) else p) for p in pictures])


def args_of(saved: Mapping[str, Any]) -> Args:
    """The options a checkpoint was trained with: unknown ones are left out; what is younger than the file is off."""
    before: dict[str, Any] = {"map_calibration": "none", "image_score": "text"}
    known = {f.name for f in fields(Args)}
    return resolve(Args(**{name: value for name, value in (before | dict(saved["args"])).items() if name in known}))


def load_detector(path: Path | str, *, device: str = "auto", backbone_weights: str | None = None) -> Detector:
    """The detector of one of our checkpoints, or of a checkpoint that SOWA's authors released."""
    if is_released(Path(path)):
        args = resolve(
            Args(
                backbone="ViT-L-14-336:openai", weights=backbone_weights or str(path), map_calibration="none",
                image_score="text",
            )
        )  # fmt: skip
        saved: dict[str, Any] = {"model": read_released(Path(path)), "extra": {}}
    else:
        saved = load_checkpoint(path, system=SYSTEM)
        args = args_of(saved)
        if backbone_weights is not None:
            args = replace(args, weights=backbone_weights)
    clip = make_clip(args)
    clip.to(pick_device(device))
    extra = saved["extra"]
    check_weights(path, extra, weights_of(clip))
    model = make_model(args, clip)
    model.load_state_dict(saved["model"])
    memories = {name: Memory.restore(state) for name, state in extra.get("memories", {}).items()}
    taps = make_taps(args, clip, lambda _: None)
    return Detector(model, taps, args, memories, float(extra.get("threshold", float("nan"))))


def evaluate(checkpoint: Path, args: EvaluateArgs) -> Evaluation:
    """Score the tested classes of a checkpoint, or other data (--data-path), zero-shot or with --k-shot images."""
    detector = load_detector(checkpoint, device=args.device)
    options = replace(detector.args, on_error=args.on_error, batch_size=args.batch_size)
    if args.split != "test":
        raise UserError(f"--split {args.split}: SOWA is scored on the test split only")
    if args.data_path:
        layout = args.dataset or ("meta" if (Path(args.data_path) / "meta.json").is_file() else "mvtec")
        options = replace(
            options, eval_data_path=args.data_path, eval_dataset=layout, test_classes=[], fast_dev_run=False
        )
    elif args.dataset:
        options = replace(options, eval_dataset=args.dataset)
    if args.obj:
        options = replace(options, test_classes=[args.obj], train_classes=options.train_classes)
    if args.shot is not None:
        options = replace(options, shot=args.shot)
    data = open_test(options)
    support = support_items(data.normal, options.shot, options.seed) if options.shot else {}
    memories = remember(detector.model, detector.taps, support)
    prediction = score_items(detector.model, detector.taps, data.items, memories, options)
    assert prediction.map is not None
    known = all(item.has_truth for item in data.items)
    masks = [detector.taps.mask(item) if item.has_truth else None for item in data.items]
    truth = [mask if mask is not None else torch.zeros_like(prediction.map[0], dtype=torch.bool) for mask in masks]
    rows = class_metrics(prediction, data.items, truth)
    transductive = bool(memories) and options.score_scaling == "transductive"
    notes = ["transductive: image scores are scaled over the test set"] if transductive else []
    return Evaluation(
        system=SYSTEM,
        name=f"{options.eval_dataset or options.dataset} k={options.shot}",
        metrics=rows["mean"],
        scores=prediction.score.numpy(),
        labels=np.array([item.label for item in data.items]),
        paths=[item.path.as_posix() for item in data.items],
        groups=[item.class_name for item in data.items],
        defects=[item.defect for item in data.items],
        maps=prediction.map.numpy(),
        masks=torch.stack(truth).numpy() if known else None,
        image=lambda i: detector.transform.denormalise(detector.transform(load_pixels(data.items[i])[0])),
        threshold=detector.threshold if options.shot == detector.args.shot else None,
        notes=notes + weight_remarks(weights_of(detector.taps.clip)),
        facts={"epochs": options.epochs, "seed": options.seed, "k": options.shot},
    )
