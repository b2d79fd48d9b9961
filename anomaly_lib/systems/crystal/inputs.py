"""What the crystal system trains on: rows, graphs (cached once), texts (encoded once), split and target scale."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomaly_lib.data.fingerprint import DataFingerprint
from anomaly_lib.errors import UserError
from anomaly_lib.features import FeatureSpec, FeatureStore, default_cache_dir, extract
from anomaly_lib.models.crystal.graph_batch import GraphBatch, batch_graphs
from anomaly_lib.systems.crystal.data.dataset import (
    CrystalRow,
    CrystalTable,
    Split,
    random_split,
    read_table,
    split_from_file,
)
from anomaly_lib.systems.crystal.data.demo import demo_table
from anomaly_lib.systems.crystal.data.store import GraphStore, cached_graphs
from anomaly_lib.systems.crystal.data.text import keep_levels, normalize_text
from anomaly_lib.systems.crystal.options import HASHED_TEXT, Args

OFFICIAL_SPLIT = "official_split.json"
LEVELS = {"global": ("global",), "global+semi": ("global", "semi-global")}


@dataclass(frozen=True)
class Batch:
    """What one step sees."""

    graph: GraphBatch
    text: Tensor  # [B, 768] or [B, L, 768]
    text_mask: Tensor | None  # [B, L]
    target: Tensor  # [B]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        mask = None if self.text_mask is None else self.text_mask.to(device)
        return Batch(self.graph.to(device), self.text.to(device), mask, self.target.to(device))


def make_batch(
    graphs: GraphStore, text: dict[str, Tensor], positions: Sequence[int], targets: Sequence[float], args: Args
) -> Batch:
    """Cut these crystals out of stored graphs and encoded texts."""
    graph = batch_graphs([graphs[i] for i in positions], keep_self_links=args.periodic_images == "exact")
    index = torch.tensor(list(positions))
    target = torch.tensor(list(targets), dtype=torch.float32)
    if "tokens" not in text:
        return Batch(graph, text["pooled"][index].float(), None, target)
    mask = text["attention_mask"][index].bool()
    width = int(mask.sum(1).max())  # padding goes behind, so the batch needs no more columns than this
    return Batch(graph, text["tokens"][index, :width].float(), mask[:, :width], target)


@dataclass
class CrystalData:
    """All crystals in memory-mapped or plain arrays; `batch` cuts out what is asked for."""

    rows: list[CrystalRow]
    graphs: GraphStore
    text: dict[str, Tensor]
    split: Split
    args: Args
    facts: dict[str, Any]

    @property
    def targets(self) -> Tensor:
        return torch.tensor([row.target for row in self.rows], dtype=torch.float32)

    @property
    def text_features(self) -> int:
        return int(next(iter(self.text.values())).shape[-1])

    def batch(self, positions: Sequence[int]) -> Batch:
        """The crystals at these positions."""
        return make_batch(self.graphs, self.text, positions, [self.rows[i].target for i in positions], self.args)

    def batches(self, positions: Sequence[int], size: int) -> Iterator[Batch]:
        """In order; the last one may be smaller."""
        for start in range(0, len(positions), size):
            yield self.batch(positions[start : start + size])


def text_encoder(args: Args) -> Any:
    """The frozen text encoder: an object with ``encode_texts`` and ``weights_id``; None where no text is read."""
    if args.modality == "graph":
        return None
    outputs = ("tokens",) if args.reads_words else ("pooled",)
    if args.backbone == HASHED_TEXT:
        from anomaly_lib.backbones.hashed_text import HashedTextEncoder

        return HashedTextEncoder(outputs)
    from anomaly_lib.backbones import create_backbone

    encoder = create_backbone(args.backbone, weights=args.weights, layers=outputs, download=args.download)
    if not hasattr(encoder, "encode_texts"):
        raise UserError(f"backbone={args.backbone}: reads no text; use {HASHED_TEXT} or matscibert")
    return encoder


def encode_texts(
    texts: Sequence[str], args: Args, encoder: Any, device: torch.device, track: Any = None
) -> dict[str, Tensor]:
    """Every distinct text encoded once; rows are cached by the hash of the normalised text.

    Without an encoder one zero for each text, so that every batch has the same parts.
    """
    if encoder is None:
        return {"pooled": torch.zeros(len(texts), 1)}
    levels = LEVELS.get(args.text_levels)
    prepared = [normalize_text(text if levels is None else keep_levels(text, levels)) for text in texts]
    outputs = (*encoder.outputs, "attention_mask")
    spec = FeatureSpec(
        backbone=encoder.name,
        weights=encoder.weights_id,
        outputs=outputs if "tokens" in outputs else ("pooled",),
        transform="matscibert characters",
        views=f"at most {args.text_max_tokens} tokens",
        dtype="fp16" if "tokens" in outputs else "fp32",
    )
    hashed = encoder.name == HASHED_TEXT  # cheaper to hash again than to read back
    store = FeatureStore(spec, root=args.cache_dir, cache="ram" if hashed else args.cache)
    if not hashed:
        encoder.to(device)

    def encode(batch: list[str]) -> dict[str, Tensor]:
        found = {k: v.cpu() for k, v in encoder.encode_texts(batch, max_length=args.text_max_tokens).items()}
        if "tokens" in found:  # rows of a store have one shape
            behind = args.text_max_tokens - found["tokens"].shape[1]
            found["tokens"] = torch.nn.functional.pad(found["tokens"], (0, 0, 0, behind))
            found["attention_mask"] = torch.nn.functional.pad(found["attention_mask"], (0, behind))
        return found

    keys = extract(
        encode, prepared, store, load=str, key=_text_key, collate=list, batch_size=64 if hashed else 16, track=track
    )
    return store.rows(keys)


def _text_key(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def data_table(args: Args) -> CrystalTable:
    """The rows of the data at --root_dir, or the built-in crystals."""
    if args.data_path is None:
        return demo_table(seed=0, prop=args.property)
    return read_table(Path(args.data_path), args.dataset, args.property, on_error=args.on_error)


def data_fingerprint(table: CrystalTable, args: Args) -> DataFingerprint:
    """Which crystals these are: ids, targets and texts, structure files and the file of the split."""
    facts = [(row.id, row.target, row.text) for row in table.rows]
    files = [row.source for row in table.rows if isinstance(row.source, Path)]
    if args.split_file == "official" and table.folder is not None:
        files.append(table.folder / OFFICIAL_SPLIT)
    elif args.split_file not in (None, "official"):
        files.append(Path(args.split_file))
    return DataFingerprint.of(facts, files, args.data_path)


def load_data(
    args: Args,
    table: CrystalTable,
    encoder: Any,
    device: torch.device,
    *,
    chosen: Callable[[Split], Sequence[int]] | None = None,
    say: Callable[[str], object] = lambda _: None,
    track: Any = None,
) -> CrystalData:
    """Check, build and encode everything that is asked of these rows; `encoder` as from `text_encoder`.

    `chosen`: rows of a split of all, of which a part is enough; the others are neither read nor encoded.
    """
    cache_dir, all_rows = _graph_folder(args), table.rows
    if chosen is not None:
        of_all = _split(args, all_rows, table.folder)
        wanted = set(chosen(of_all))
        all_rows = [row for i, row in enumerate(all_rows) if i in wanted]
    sources = [row.source for row in all_rows]
    graphs, cached = cached_graphs(sources, args, cache_dir=cache_dir, workers=args.num_workers)
    rows, graphs, skipped = _without_broken(all_rows, graphs, args)
    where = f" (from {cache_dir})" if cached else ""
    say(f"graphs: {len(graphs)} crystals, {graphs.edge_counts.mean():.0f} directed bonds a crystal{where}")
    split = _split(args, rows, table.folder) if chosen is None else _part_of(of_all, table.rows, rows)
    if args.classification and not {row.target for row in rows} <= {0.0, 1.0}:
        raise UserError("classification=True: needs targets 0 and 1")
    text = encode_texts([row.text for row in rows], args, encoder, device, track)
    facts = {
        "crystals": len(rows),
        "without_target": len(table.without_target),
        "without_structure": table.without_structure[:100],
        "skipped": skipped[:100],
        "split": {"train": len(split.train), "val": len(split.val), "test": len(split.test)},
        "text_encoder": None if encoder is None else encoder.name,
    }
    return CrystalData(rows, graphs, text, split, args, facts)


def _graph_folder(args: Args) -> Path | None:
    if args.data_path is None:
        return None
    if args.use_preprocessed:
        return Path(args.preprocessed_dir)
    if args.cache in ("ram", "off"):
        return None
    return (Path(args.cache_dir) if args.cache_dir else default_cache_dir()) / "crystal-graphs"


def _without_broken(
    rows: list[CrystalRow], graphs: GraphStore, args: Args
) -> tuple[list[CrystalRow], GraphStore, list[str]]:
    reasons = list(graphs.errors.values())
    if not reasons:
        return rows, graphs, []
    if args.on_error != "skip":
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise UserError(f"{reasons[0]}{more}; mend the file or use on_error=skip")
    kept = [i for i in range(len(rows)) if i not in graphs.errors]
    return [rows[i] for i in kept], GraphStore.from_graphs([graphs[i] for i in kept]), reasons


def _part_of(split: Split, rows: list[CrystalRow], kept: list[CrystalRow]) -> Split:
    """The positions among `kept` of what was split among `rows`."""
    now = {row.id: position for position, row in enumerate(kept)}
    parts = ([now[rows[i].id] for i in part if rows[i].id in now] for part in (split.train, split.val, split.test))
    return Split(*parts)


def _split(args: Args, rows: list[CrystalRow], folder: Path | None) -> Split:
    if args.split_file is None:
        return random_split(len(rows), args)
    if args.split_file != "official":
        return split_from_file(Path(args.split_file), rows)
    if folder is None:
        raise UserError("split_file=official: the built-in data has no official split")
    return split_from_file(folder / OFFICIAL_SPLIT, rows)


@dataclass(frozen=True)
class TargetScale:
    """(target - mean) / std of the training part, or nothing."""

    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def of(cls, targets: Tensor, *, active: bool) -> "TargetScale":
        """Fitted on the training targets; constant targets keep a scale of 1."""
        if not active:
            return cls()
        std = float(targets.double().std()) if len(targets) > 1 else 1.0
        return cls(float(targets.double().mean()), std if math.isfinite(std) and std > 0 else 1.0)

    def to_model(self, target: Tensor) -> Tensor:
        return (target - self.mean) / self.std

    def to_property(self, prediction: Tensor) -> Tensor:
        return prediction * self.std + self.mean
