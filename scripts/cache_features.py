"""Encode a data set ahead of time: any image backbone x any data set into the feature cache that training reads.

    python scripts/cache_features.py --system promptad --backbone ViT-B-16-plus-240 --dataset mvtec --data-path MVTec
    python scripts/cache_features.py --system sowa --options="--feature-map-idx 2 5 8 11" ...
    python scripts/cache_features.py --backbone resnet18 --image-size 224 --layers layer2 layer3 ...
    torchrun --nproc_per_node 4 scripts/cache_features.py ...          # every rank encodes its share

Ends at once when everything is there; may be killed and started again at any time. A run finds the rows if it asks for
the same backbone, weights, outputs, transform, row type and precision: --system fills what a training of that system
with the same options reads. (PatchCore and the other detectors read pixels; weld and crystal runs fill their own.)
"""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Optional, TypeVar

import torch

from anomaly_lib.backbones import FrozenBackbone, create_backbone
from anomaly_lib.backbones.huggingface_names import KNOWN
from anomaly_lib.backbones.registry import split_family
from anomaly_lib.config import arg, command, override, parse
from anomaly_lib.data import ImageTransform, open_dataset
from anomaly_lib.data.base import Item, load_pixels, readable_items, select
from anomaly_lib.data.transforms import RESIZE_MODES
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.distributed import barrier, process_group, rank, world_size
from anomaly_lib.engine.log import Log, progress
from anomaly_lib.errors import UserError
from anomaly_lib.features import FeatureSpec, FeatureStore, extract
from anomaly_lib.features.spec import ROW_DTYPES
from anomaly_lib.options import BackboneArgs, CacheArgs, DataArgs

READS = {"vjepa2": "videos", "ast": "spectrograms", "bert": "texts"}  # transformers families that are not for images
T = TypeVar("T")


@dataclass
class Args(DataArgs, BackboneArgs, CacheArgs):
    """Fill the feature cache."""

    cache: str = override(CacheArgs, "cache", "disk", choices=["auto", "disk"])
    obj: Optional[str] = arg(None, "only this class", type=str, aliases=["class_name"])
    split: Optional[str] = arg(None, "only train or test", type=str, choices=["train", "test"])
    system: Optional[str] = arg(None, "fill what this system's training reads", type=str, choices=["promptad", "sowa"])
    options: str = arg("", 'options of that training that decide its features: --options="--protocol paper"')
    layers: list[str] = arg([], "block numbers and output names; none = the backbone's usual outputs")
    image_size: Optional[int] = arg(None, "input size; None = the backbone's own", type=int, at_least=1)
    resize: str = arg("stretch", "how images of another shape are fitted", choices=list(RESIZE_MODES))
    dtype: str = arg("fp32", "number format of the stored rows", choices=list(ROW_DTYPES))
    precision: str = arg("fp32", "number format the backbone runs in", choices=list(ROW_DTYPES))
    batch_size: int = arg(16, "images per pass", at_least=1)
    num_workers: int = arg(2, "threads that decode ahead of the backbone", at_least=0)
    device: str = arg("auto", "auto, cpu, cuda or cuda:N")


def image_transform(net: FrozenBackbone, args: Args) -> ImageTransform:
    """The backbone's own normalisation at its input size, the crop a square one where the shorter edge is scaled."""
    size = net.image_size or ((args.image_size,) * 2 if args.image_size else None)
    if size is None:
        raise UserError(f"--image-size is needed: {net.name} takes images of any size")
    return ImageTransform(
        size=min(size) if args.resize == "shorter" else size,
        resize=args.resize,
        crop=size if args.resize == "shorter" else None,
        mean=net.mean,  # type: ignore[arg-type]
        std=net.std,  # type: ignore[arg-type]
        interpolation=net.interpolation,
    )


class Part(NamedTuple):
    """Items that enter one network in one way."""

    net: FrozenBackbone
    transform: ImageTransform
    dtype: str
    items: Sequence[Item]

    def spec(self, precision: str) -> FeatureSpec:
        return FeatureSpec(
            backbone=self.net.name,
            weights=self.net.weights_id,
            outputs=self.net.outputs,
            transform=self.transform.describe(),
            image_size=self.net.image_size or (),
            dtype=self.dtype,
            precision=precision,
        )


def plain_parts(args: Args, items: Sequence[Item], device: torch.device) -> Iterator[Part]:
    """--backbone with --layers, as the command line has it."""
    net = create_backbone(
        args.backbone,
        weights=args.weights,
        layers=args.layers or None,
        image_size=args.image_size,
        download=args.download,
    ).to(device)
    yield Part(net, image_transform(net, args), args.dtype, items)


def promptad_parts(args: Args, items: Sequence[Item], device: torch.device) -> Iterator[Part]:
    """CLIP and perhaps --visual-backbone; test images may enter in another colour order."""
    from anomaly_lib.systems.promptad.features import Towers
    from anomaly_lib.systems.promptad.options import Args as PromptADArgs
    from anomaly_lib.systems.promptad.options import resolve

    towers = Towers(resolve(options_of(PromptADArgs, args)), device)
    for net in [towers.clip] if towers.visual is None else [towers.clip, towers.visual]:
        for test in (False, True):
            part = [item for item in items if (item.split == "test") == test]
            yield Part(net, towers.transform(net, test=test), "fp32", part)


def sowa_parts(args: Args, items: Sequence[Item], device: torch.device) -> Iterator[Part]:
    """CLIP's taps."""
    from anomaly_lib.systems.sowa.data import Taps
    from anomaly_lib.systems.sowa.eval import make_clip
    from anomaly_lib.systems.sowa.options import Args as SowaArgs
    from anomaly_lib.systems.sowa.options import resolve

    own = resolve(replace(options_of(SowaArgs, args), cache="ram"))
    clip = make_clip(own)
    yield Part(clip.to(device), Taps(clip, own, lambda _: None).transform, own.layers_dtype, items)


PARTS: dict[str | None, Callable[[Args, Sequence[Item], torch.device], Iterator[Part]]] = {
    None: plain_parts, "promptad": promptad_parts, "sowa": sowa_parts,
}  # fmt: skip


def options_of(cls: type[T], args: Args) -> T:
    """The training's own options: --options, and ours of the same name."""
    own: Any = parse(cls, shlex.split(args.options), prog="--options")
    ours = BackboneArgs.__dataclass_fields__.keys() | {"image_size", "precision"}
    return replace(own, **{name: getattr(args, name) for name in ours})


def check(args: Args) -> None:
    """What can be refused before anything is read."""
    family, name = split_family(args.backbone)
    if family == "huggingface" and name in KNOWN and (media := READS.get(KNOWN[name].family)):
        raise UserError(
            f"--backbone {args.backbone} reads {media}, this script encodes images; its own training fills the cache"
        )
    default = {f.name: getattr(Args(), f.name) for f in fields(Args)}
    own = ["layers", "resize", "dtype"] if args.system else ["options"]
    if given := [name for name in own if getattr(args, name) != default[name]]:
        raise UserError(
            f"--{given[0]}: {f'--system {args.system} decides it; see --options' if args.system else 'needs --system'}"
        )


def fill(args: Args) -> None:
    check(args)
    chosen = [args.obj] if args.obj else None
    items = select(open_dataset(args.dataset, args.data_path, classes=chosen), split=args.split, class_name=args.obj)
    device, log = pick_device(args.device), Log()
    items, skipped = readable_items(items, args.on_error)
    for one in skipped:
        log.line(f"left out {one['path']}: {one['reason']}")
    parts: dict[str, Part] = {}
    for part in PARTS[args.system](args, items, device):
        if part.net.is_random:
            raise UserError(
                "--weights random: features of random weights have no identity and are never cached on disk"
            )
        key = part.spec(args.precision).key
        parts[key] = part._replace(items=[*parts[key].items, *part.items]) if key in parts else part
    with process_group(device):
        for part in (part for part in parts.values() if part.items):
            fill_part(part, args, device, log)


def fill_part(part: Part, args: Args, device: torch.device, log: Log) -> None:
    """Every rank encodes its share; then all of it must be there."""
    spec = part.spec(args.precision)
    with FeatureStore(spec, root=args.cache_dir, cache=args.cache, notice=log.line) as store:
        already, started = len(store), time.monotonic()
        keys = extract(
            part.net.encode,
            part.items,
            store,
            load=lambda item: part.transform(load_pixels(item)[0]),
            batch_size=args.batch_size,
            device=device,
            threads=args.num_workers,
            share=(rank(), world_size()),
            track=progress,
        )
        barrier()
        if absent := len(store.missing(keys)):
            raise UserError(f"{absent} features are not in {store.folder}: another rank failed; run the command again")
        seconds, new = time.monotonic() - started, len(store) - already
        log.line(
            f"{store.folder}: {len(set(keys))} images are cached, {new} of them new ({new / seconds:.1f} images/s)"
        )


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, fill, argv, prog="cache_features.py", description=__doc__.splitlines()[0])


if __name__ == "__main__":
    sys.exit(main())
