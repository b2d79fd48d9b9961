"""Frozen features (L0) of weld runs: one cached store per modality, and batches for the trainable model.

A training epoch reads rows and never touches a backbone; with the cache off, or where the inputs of training runs are
augmented, every batch is encoded afresh.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from anomaly_lib.backbones.top_blocks import TopBlocks
from anomaly_lib.engine.amp import autocast_for
from anomaly_lib.engine.log import progress
from anomaly_lib.errors import UserError
from anomaly_lib.features import FeatureSpec, FeatureStore, extract, file_key
from anomaly_lib.systems.weld.data.defects import disturbances, disturbed
from anomaly_lib.systems.weld.data.manifest import WeldRun
from anomaly_lib.systems.weld.data.media import photo_tensor
from anomaly_lib.systems.weld.data.runs import (
    audio_tensor,
    load_raw,
    normalise_sensors,
    process_video,
    sensor_series,
)
from anomaly_lib.systems.weld.data.signal import SENSOR_COLUMNS
from anomaly_lib.systems.weld.encoders import WeldEncoders, photo_vectors
from anomaly_lib.systems.weld.options import WeldSettings
from anomaly_lib.types import Sample

Augment = Callable[[Sample], Sample]
DECIDING = {
    "video": ("video_frames", "video_size", "video_norm", "legacy_video", "video_token_pool"),
    "audio": ("mels", "audio_frames", "audio_norm", "frame_select", "legacy_audio_axes"),
    "images": ("views", "photo_size", "legacy_image_norm", "layer_index", "patch_only"),
}
"""Settings that decide the frozen features of a modality."""


def _stack(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


class WeldFeatures:
    """The runs of an experiment as batches of frozen features; `prepare` fills the stores once."""

    def __init__(
        self,
        settings: WeldSettings,
        encoders: WeldEncoders,
        *,
        cache: str = "auto",
        cache_dir: str | Path | None = None,
        device: torch.device,
        precision: str = "fp32",
        dtype: str = "fp32",
        threads: int = 0,
        augment: Augment | None = None,
        disturb: float = 0.0,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        self.settings, self.encoders, self.device = settings, encoders.to(device), device
        self.cache, self.threads = cache, threads
        self.augment, self.disturb = augment, disturb  # of training batches alone
        self.precision = precision
        self.encode_part = {
            "video": encoders.below_video,
            "audio": encoders.below_audio,
            "images": encoders.below_images,
        }
        self.stores = {
            part: FeatureStore(
                FeatureSpec(
                    backbone=net.name,
                    weights=net.weights_id,
                    outputs=encoders.stored(part),
                    transform=self._describe(part),
                    precision=precision,
                    dtype=dtype,
                ),
                root=cache_dir,
                cache=cache,
                notice=notice,
            )
            for part, net in encoders.nets.items()
        }
        self._sensors: dict[str, tuple[Tensor, bool]] = {}
        self.by_position: set[str] = set()  # runs whose sensor columns have none of the known names
        self.sensor_statistics: tuple[Tensor, Tensor] | None = None  # mean and std [C] over the training runs

    def _describe(self, part: str) -> str:
        """Everything besides the weights that decides the rows of a modality."""
        names = DECIDING[part] + (("views",) if part == "video" and self.settings.legacy_video else ())
        values = {name: getattr(self.settings, name) for name in names}
        if part == "images":
            values["branches"] = [branch.name for branch in self.encoders.branches]
        if part in self.encoders.cut:
            values["below_block"] = self.encoders.cut[part].first
            values.pop("video_token_pool", None)  # what is pooled is made above
        return str(values)

    # -- inputs ---------------------------------------------------------------------------------------------------

    def load_part(self, run: WeldRun, part: str, disturbance: int | None = None) -> dict[str, Tensor]:
        """One modality of a run as its encoder's input; `disturbance`: the seed of what is done to its sound."""
        needs = ("images",) if part == "video" and self.settings.legacy_video else (part,)
        raw = load_raw(run, self.settings, needs)
        if part == "video":
            video, there = process_video(raw, self.settings)
            return {"video": video, "has_video": torch.tensor(there)}
        if part == "audio":
            wave = raw.audio if raw.audio is None else disturbed(raw.audio[:, None], disturbance)[:, 0]
            return {"audio": audio_tensor(wave, self.settings), "has_audio": torch.tensor(wave is not None)}
        s = self.settings
        images, views = photo_tensor(raw.photos, s.views, s.photo_size, normalise=not s.legacy_image_norm)
        return {"images": images, "views": views}

    def sensors(self, run: WeldRun) -> tuple[Tensor, bool]:
        """The series [S, C] before normalisation, kept in memory, and whether the run has one."""
        if run.run_id not in self._sensors:
            raw = load_raw(run, self.settings, ("sensors",))
            self._sensors[run.run_id] = sensor_series(raw, self.settings), raw.sensors is not None
            if not raw.sensors_by_name:
                self.by_position.add(run.run_id)
        return self._sensors[run.run_id]

    def fit_sensors(self, train: Sequence[WeldRun], norm: str) -> None:
        """For `norm` "train": mean and std of each channel over the training runs that have sensors."""
        self.sensor_statistics = None
        if norm == "train":
            series = torch.cat([one for one, there in map(self.sensors, train) if there] or [torch.zeros(1, 1)])
            self.sensor_statistics = series.mean(0), series.std(0, unbiased=False)

    def read_sensors(self, runs: Sequence[WeldRun], say: Callable[[str], object]) -> None:
        """Read the sensors of these runs, and say of how many the columns were taken by position."""
        for run in runs:
            self.sensors(run)
        odd = sorted(self.by_position & {run.run_id for run in runs})
        if odd:
            say(
                f"sensor columns of {len(odd)} runs are taken by position, their headers do not name them "
                f"({', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''}); expected: {', '.join(SENSOR_COLUMNS)}"
            )

    def readable(self, runs: Sequence[WeldRun]) -> tuple[list[WeldRun], list[dict[str, str]]]:
        """The runs whose files can be read, and the others with the reason (``on_error="skip"``)."""

        def read(run: WeldRun) -> None:
            self.sensors(run)
            for part, store in self.stores.items():
                if run_key(run) not in store:
                    self.load_part(run, part)

        return readable_runs(runs, read)

    # -- features -------------------------------------------------------------------------------------------------

    def prepare(self, runs: Sequence[WeldRun], *, batch_size: int = 8) -> None:
        """Encode what the stores lack. Does nothing with the cache off."""
        if self.cache == "off":
            return
        for part in self.stores:
            self.fill(part, runs, batch_size)

    def fill(self, part: str, runs: Sequence[WeldRun], batch_size: int) -> None:
        """Encode what the store of one modality lacks."""

        def load(run: WeldRun) -> dict[str, Tensor]:
            return self.load_part(run, part)

        def encode(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            return self.encode_part[part](self._to_device(batch))

        extract(
            encode, runs, self.stores[part], load=load, key=run_key, collate=_stack, batch_size=batch_size,
            device=self.device, threads=self.threads, track=progress,
        )  # fmt: skip

    def have_photos(self, runs: Sequence[WeldRun]) -> list[bool]:
        """Has each run a photo of the finished weld? Reads nothing else of the stored rows."""
        return [bool(row) for row in self.stores["images"].rows(list(map(run_key, runs)), ["views"])["views"].any(1)]

    def seen_by(self, tops: Mapping[str, TopBlocks] | nn.ModuleDict | None) -> "WeldFeatures":
        """The same stores as a model with these trained blocks sees them; itself where no encoder learns."""
        if tops is None:
            return self
        own = copy.copy(self)
        own.encoders = replace(self.encoders, used=cast(Mapping[str, TopBlocks], tops))
        return own

    def batch(self, runs: Sequence[WeldRun], *, training: bool = False) -> dict[str, Any]:
        """What `CausalFiLM.forward` takes, on the device; in `training` inputs are changed as the options say."""
        return self.tokens(self.read(runs, training=training))

    def modality(self, runs: Sequence[WeldRun], part: str) -> Tensor:
        """Tokens [B, L, C] of one modality, read alone; of the photos one mean vector each, branches side by side."""
        with autocast_for(self.device, self.precision if self.encoders.cut else "fp32"):
            rows = self.encoders.tokens_of(self.read(runs, parts=[part]))
        if part != "images":
            return rows[part].float()
        return photo_vectors([rows[f"branch{i}"].float() for i in range(len(self.encoders.branches))])

    def read(
        self, runs: Sequence[WeldRun], *, training: bool = False, parts: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """What the stores of `parts` (None = all) keep of runs, on the device, and their sensors; where inputs are
        changed, made anew."""
        parts = list(self.stores) if parts is None else parts
        seeds = disturbances(len(runs), self.disturb if training else 0.0)
        changes = self.augment if training else None
        if self.cache == "off" or changes is not None:
            rows = self._encode_now(runs, parts, changes, seeds)
        else:
            keys = [run_key(run) for run in runs]
            rows = {name: rows for part in parts for name, rows in self.stores[part].rows(keys).items()}
        rows |= self._series(runs, seeds)
        return {name: row.float() if row.is_floating_point() else row for name, row in self._to_device(rows).items()}

    def clips(self, runs: Sequence[WeldRun], part: str) -> Tensor:
        """What the encoder of `part` reads of training runs, decoded and changed anew: see `WeldEncoders.clips`.

        Of "sensors" the series [N, S, C].
        """
        seeds = disturbances(len(runs), self.disturb)
        if part == "sensors":
            found = self._to_device(self._series(runs, seeds))
            return found["sensors"][found["has_sensors"]]
        return self.encoders.clips(part, self._inputs(runs, part, self.augment, seeds))

    def tokens(self, rows: dict[str, Tensor]) -> dict[str, Any]:
        """A batch of what `read` answers; blocks that learn run here."""
        with autocast_for(self.device, self.precision if self.encoders.cut else "fp32"):
            rows = self.encoders.tokens_of(rows)
        views = rows["views"].bool()
        present = [rows["has_video"].bool(), views.any(1), rows["has_audio"].bool(), rows["has_sensors"]]
        return {
            "video": rows["video"].float(),
            "audio": rows["audio"].float(),
            "images": [rows[f"branch{i}"].float() for i in range(len(self.encoders.branches))],
            "views": views,
            "sensors": rows["sensors"],
            "present": torch.stack(present, dim=1),
        }

    def _encode_now(
        self, runs: Sequence[WeldRun], parts: Sequence[str], changes: Augment | None, seeds: Sequence[int | None]
    ) -> dict[str, Tensor]:
        rows: dict[str, Tensor] = {}
        for part in parts:
            inputs = self._inputs(runs, part, changes, seeds)
            with torch.no_grad():
                rows |= self.encode_part[part](inputs)
        return rows

    def _inputs(
        self, runs: Sequence[WeldRun], part: str, changes: Augment | None, seeds: Sequence[int | None]
    ) -> dict[str, Tensor]:
        samples = self._load_parts(runs, part, seeds)
        return self._to_device(_stack(samples if changes is None else list(map(changes, samples))))

    def _load_parts(self, runs: Sequence[WeldRun], part: str, seeds: Sequence[int | None]) -> list[dict[str, Tensor]]:
        if not self.threads:
            return [self.load_part(run, part, seed) for run, seed in zip(runs, seeds, strict=True)]
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(lambda run, seed: self.load_part(run, part, seed), runs, seeds))

    def _series(self, runs: Sequence[WeldRun], seeds: Sequence[int | None]) -> dict[str, Tensor]:
        """Normalised sensors [B, S, C] and which runs have them [B]."""
        series = [self.sensors(run) for run in runs]
        changed = [torch.from_numpy(disturbed(one.numpy(), s)) for (one, _), s in zip(series, seeds, strict=True)]
        normal = torch.stack([normalise_sensors(one, self.sensor_statistics) for one in changed])
        return {"sensors": normal, "has_sensors": torch.tensor([there for _, there in series])}

    def _to_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def dims(self) -> dict[str, int]:
        """Token widths for the model's configuration."""
        e = self.encoders
        return {"video_dim": e.video.width, "audio_dim": e.audio.width, "image_dim": e.image.width}


def run_key(run: WeldRun) -> str:
    """Key of a run in the feature store: of its files, or of what decides the pixels of a drawn one."""
    if run.render is None:
        return file_key(run.folder)
    return hashlib.sha256(f"{run.run_id} {run.facts}".encode()).hexdigest()


def readable_runs(
    runs: Sequence[WeldRun], read: Callable[[WeldRun], object]
) -> tuple[list[WeldRun], list[dict[str, str]]]:
    """The runs that `read` can read, and the others with the reason; none at all is an error."""
    kept: list[WeldRun] = []
    skipped: list[dict[str, str]] = []
    for run in runs:
        try:
            read(run)
        except UserError as error:
            skipped.append({"path": str(run.folder), "reason": str(error)})
            continue
        kept.append(run)
    if not kept:
        raise UserError(f"none of the {len(skipped)} runs can be read; the first: {skipped[0]['reason']}")
    return kept, skipped
