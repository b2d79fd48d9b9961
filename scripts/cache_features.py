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
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Optional

from anomaly_lib.backbones.huggingface_names import KNOWN
from anomaly_lib.command_line import command, parse
from anomaly_lib.config import ANY, Preset, arg, default_of, override, shown
from anomaly_lib.data.names import DATASET_NAMES, RESIZE_MODES
from anomaly_lib.errors import OptionError, UserError
from anomaly_lib.options import PRECISIONS, BackboneArgs, CacheArgs, DataArgs
from anomaly_lib.systems.registry import SYSTEMS

if TYPE_CHECKING:  # torch is loaded where there is work: --help and mistakes come at once
    import torch

    from anomaly_lib.backbones import FrozenBackbone
    from anomaly_lib.data import ImageTransform, Item
    from anomaly_lib.engine.log import Log
    from anomaly_lib.features import FeatureSpec

READS = {"vjepa2": "videos", "ast": "spectrograms", "bert": "texts"}  # transformers families that are not for images
SHARED = ("dataset", "data_path", "backbone", "weights", "download", "image_size", "precision")  # with the system


@dataclass
class Args(DataArgs, BackboneArgs, CacheArgs):
    """Fill the feature cache."""

    dataset: str = override(DataArgs, "dataset", choices=DATASET_NAMES)
    backbone: Optional[str] = arg(None, "name of the frozen encoder; None = that of --system", type=str)
    cache: str = override(CacheArgs, "cache", "disk", choices=["disk"])
    obj: Optional[str] = arg(None, "only this class", type=str, aliases=["class_name"])
    split: Optional[str] = arg(None, "only train or test", type=str, choices=["train", "test"])
    system: Optional[str] = arg(None, "fill what this system's training reads", type=str, choices=["promptad", "sowa"])
    options: str = arg(
        "", 'options of that training that decide its features: --options="--protocol paper"', needs={"system": ANY}
    )
    layers: list[str] = arg([], "block numbers and output names; none = the backbone's usual outputs")
    image_size: list[int] = arg(
        [], "height and width of the input, one number = a square; none = the backbone's own", type=int, at_least=1
    )
    resize: str = arg("stretch", "how images of another shape are fitted", choices=RESIZE_MODES)
    dtype: str = arg("fp32", "number format of the stored rows", choices=PRECISIONS)
    precision: str = arg("fp32", "number format the backbone runs in", choices=PRECISIONS)
    batch_size: int = arg(16, "images per pass", at_least=1)
    num_workers: int = arg(2, "threads that decode ahead of the backbone", at_least=0)
    device: str = arg("auto", "auto, cpu, cuda or cuda:N")

    PRESETS: ClassVar = (Preset(when={"dataset": "demo", "data_path": None}, then={"backbone": "demo-clip"}),)

    def check(self) -> None:
        if self.backbone is None and self.system is None:
            raise OptionError("give backbone= or the system= whose training is to find its features")
        if len(self.image_size) > 2:
            raise OptionError(f"image_size={shown(self.image_size)}: takes one or two numbers")
        if self.weights == "random":
            raise OptionError("weights=random: such features have no identity and are never cached on disk")
        default = {f.name: default_of(f) for f in fields(self)}
        for name in ("layers", "resize", "dtype") if self.system else ():
            if (value := getattr(self, name)) != default[name]:
                raise OptionError(f"{name}={shown(value)}: system={self.system} decides it; see options=")
        name = (self.backbone or "").removeprefix("huggingface:")
        if name in KNOWN and (media := READS.get(KNOWN[name].family)):
            raise OptionError(
                f"backbone={self.backbone}: reads {media}, this script encodes images; its training fills the cache"
            )

    @property
    def size(self) -> tuple[int, int] | None:
        return (self.image_size[0], self.image_size[-1]) if self.image_size else None


def image_transform(net: "FrozenBackbone", args: Args) -> "ImageTransform":
    """The backbone's own normalisation at its input size, the crop a square one where the shorter edge is scaled."""
    from anomaly_lib.data import ImageTransform

    size = net.image_size or args.size
    if size is None:
        raise UserError(f"give image_size=: {net.name} takes images of any size")
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

    net: "FrozenBackbone"
    transform: "ImageTransform"
    dtype: str
    items: "Sequence[Item]"

    def spec(self, precision: str) -> "FeatureSpec":
        from anomaly_lib.features import FeatureSpec

        return FeatureSpec(
            backbone=self.net.name,
            weights=self.net.weights_id,
            outputs=self.net.outputs,
            transform=self.transform.describe(),
            image_size=self.net.image_size or (),
            dtype=self.dtype,
            precision=precision,
        )


def plain_parts(args: Args, items: "Sequence[Item]", device: "torch.device") -> Iterator[Part]:
    """--backbone with --layers, as the command line has it."""
    from anomaly_lib.backbones import create_backbone

    net = create_backbone(
        args.backbone or "", weights=args.weights, layers=args.layers or None, image_size=args.size,
        download=args.download,
    ).to(device)  # fmt: skip
    yield Part(net, image_transform(net, args), args.dtype, items)


def promptad_parts(args: Args, items: "Sequence[Item]", device: "torch.device") -> Iterator[Part]:
    """CLIP and perhaps --visual-backbone; test images may enter in another colour order."""
    from anomaly_lib.systems.promptad.features import Towers

    towers = Towers(options_of(args), device)
    for net in [towers.clip] if towers.visual is None else [towers.clip, towers.visual]:
        for test in (False, True):
            part = [item for item in items if (item.split == "test") == test]
            yield Part(net, towers.transform(net, test=test), "fp32", part)


def sowa_parts(args: Args, items: "Sequence[Item]", device: "torch.device") -> Iterator[Part]:
    """CLIP's taps."""
    from anomaly_lib.systems.sowa.taps import Taps, frozen_clip

    own = options_of(args, "--cache", "ram")
    clip = frozen_clip(own).to(device)
    yield Part(clip, Taps(clip, own).transform, own.layers_dtype, items)


PARTS: "dict[str | None, Callable[[Args, Sequence[Item], torch.device], Iterator[Part]]]" = {
    None: plain_parts, "promptad": promptad_parts, "sowa": sowa_parts,
}  # fmt: skip


def options_of(args: Args, *more: str) -> Any:
    """The training's own options: --options, and ours of the same name where they were given."""
    assert args.system is not None
    words = [*shlex.split(args.options), *more]
    for f in fields(args):
        value = getattr(args, f.name)
        if f.name in SHARED and value != default_of(f):
            words += [f"--{f.name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return parse(SYSTEMS[args.system].Args, words, prog="--options")


def fill(args: Args) -> None:
    from anomaly_lib.data import open_dataset
    from anomaly_lib.data.base import readable_items, select
    from anomaly_lib.engine.amp import pick_device
    from anomaly_lib.engine.distributed import process_group
    from anomaly_lib.engine.log import Log

    chosen = [args.obj] if args.obj else None
    items = select(open_dataset(args.dataset, args.data_path, classes=chosen), split=args.split, class_name=args.obj)
    device, log = pick_device(args.device), Log()
    items, skipped = readable_items(items, args.on_error)
    for one in skipped:
        log.line(f"left out {one['path']}: {one['reason']}")
    parts: dict[str, Part] = {}
    for part in PARTS[args.system](args, items, device):
        key = part.spec(args.precision).key
        parts[key] = part._replace(items=[*parts[key].items, *part.items]) if key in parts else part
    with process_group(device):
        for part in (part for part in parts.values() if part.items):
            fill_part(part, args, device, log)


def fill_part(part: Part, args: Args, device: "torch.device", log: "Log") -> None:
    """Every rank encodes its share; then all of it must be there."""
    from anomaly_lib.data.base import load_pixels
    from anomaly_lib.engine.distributed import barrier, rank, world_size
    from anomaly_lib.engine.log import progress
    from anomaly_lib.features import FeatureStore, extract

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
