"""Encode a data set ahead of time: any backbone x any data set into the feature cache that training reads.

    python scripts/cache_features.py --backbone ViT-B-16-plus-240 --dataset mvtec --data-path MVTec
    torchrun --nproc_per_node 4 scripts/cache_features.py ...          # every rank encodes its share

Ends at once when everything is there; may be killed and started again at any time. A run finds the rows if it asks for
the same backbone, weights, outputs, transform, row type and precision.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch

from anomaly_lib.backbones import FrozenBackbone, create_backbone
from anomaly_lib.config import arg, command, override
from anomaly_lib.data import ImageTransform, open_dataset
from anomaly_lib.data.base import ImageDataset, load_pixels, select
from anomaly_lib.data.transforms import RESIZE_MODES
from anomaly_lib.engine.distributed import barrier, local_rank, process_group, rank, world_size
from anomaly_lib.engine.log import Log, progress
from anomaly_lib.errors import UserError
from anomaly_lib.features import FeatureSpec, FeatureStore, extract
from anomaly_lib.features.spec import ROW_DTYPES
from anomaly_lib.options import BackboneArgs, CacheArgs, DataArgs


@dataclass
class Args(DataArgs, BackboneArgs, CacheArgs):
    """Fill the feature cache."""

    cache: str = override(CacheArgs, "cache", "disk", choices=["auto", "disk"])
    obj: Optional[str] = arg(None, "only this class", type=str, aliases=["class_name"])
    split: Optional[str] = arg(None, "only train or test", type=str, choices=["train", "test"])
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


def fill(args: Args) -> None:
    items = select(open_dataset(args.dataset, args.data_path), split=args.split, class_name=args.obj)
    on_gpu = torch.cuda.is_available() if args.device == "auto" else args.device.startswith("cuda")
    device = torch.device(
        f"cuda:{local_rank()}" if on_gpu and ":" not in args.device else args.device.replace("auto", "cpu")
    )
    net = create_backbone(
        args.backbone,
        weights=args.weights,
        layers=args.layers or None,
        image_size=args.image_size,
        download=args.download,
    ).to(device)
    transform = image_transform(net, args)
    spec = FeatureSpec(
        backbone=net.name,
        weights=net.weights_id,
        outputs=net.outputs,
        transform=transform.describe(),
        image_size=net.image_size or (),
        dtype=args.dtype,
        precision=args.precision,
    )
    log = Log()
    if args.on_error == "skip":
        readable = ImageDataset(items, transform=transform, cache_bytes=0, on_error="skip")
        items = readable.items
        for one in readable.skipped:
            log.line(f"left out {one['path']}: {one['reason']}")
    if net.is_random:
        raise UserError("--weights random: features of random weights have no identity and are never cached on disk")
    with process_group(device), FeatureStore(spec, root=args.cache_dir, cache=args.cache, notice=log.line) as store:
        already, started = len(store), time.monotonic()
        keys = extract(
            net.encode,
            items,
            store,
            load=lambda item: transform(load_pixels(item)[0]),
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
