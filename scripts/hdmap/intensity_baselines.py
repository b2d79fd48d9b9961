"""What brightness alone says about HDMAP: AUROC of simple statistics of a map, per domain.

They must fail (warm healthy maps outshine cold faulty ones); the last column, how far a map's loudest tooth row stands
above the same row of normal maps, shows that the fault is there.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg
from anomaly_lib.systems.detectors.hdmap.names import DOMAINS

if TYPE_CHECKING:
    from torch import Tensor

    from anomaly_lib.systems.detectors.hdmap.reader import DomainSplit

STATISTICS: "dict[str, Callable[[Tensor], Tensor]]" = {
    "mean": lambda maps: maps.mean((1, 2)),
    "maximum": lambda maps: maps.amax((1, 2)),
    "deviation": lambda maps: maps.std((1, 2)),
    "minimum": lambda maps: maps.amin((1, 2)),
    "95 % quantile": lambda maps: maps.flatten(1).quantile(0.95, dim=1),
}


@dataclass
class Args(Options):
    """Thresholds on brightness, per domain."""

    data_path: Optional[str] = arg(
        None, "folder that holds domain_A ... domain_D; None = synthetic maps", type=str, aliases=["dataset-root"]
    )
    maps: int = arg(400, "synthetic maps per class, half cold, half warm", at_least=2)


def load(args: Args, domain: str) -> "tuple[Tensor, Tensor, Tensor]":
    """Normal training maps, test maps [N, H, W] and their labels [N]."""
    from anomaly_lib.systems.detectors.hdmap.demo_maps import demo_split
    from anomaly_lib.systems.detectors.hdmap.reader import load_split

    def demo(domain: str, split: str) -> "DomainSplit":
        return demo_split(domain, split, train=args.maps, test=args.maps)

    train, test = (load_split(args.data_path, domain, split, demo=demo) for split in ("train", "test"))
    return train.images.squeeze(1), test.images.squeeze(1), test.labels


def loudest_row(maps: "Tensor", normal: "Tensor") -> "Tensor":
    """Row profile relative to the map's mean, minus the normal profile; its maximum [N]."""

    def profile(these: "Tensor") -> "Tensor":
        return these.mean(2) / these.mean((1, 2)).unsqueeze(1)

    return (profile(maps) - profile(normal).mean(0)).amax(1)


def run(args: Args) -> None:
    from anomaly_lib.metrics import auroc

    names = [*STATISTICS, "loudest row"]
    print("| domain | " + " | ".join(names) + " |")
    print("|" + "---|" * (len(names) + 1))
    for domain in DOMAINS:
        normal, maps, labels = load(args, domain)
        values = [auroc(statistic(maps), labels) for statistic in STATISTICS.values()]
        values.append(auroc(loudest_row(maps, normal), labels))
        print(f"| {domain[-1]} | " + " | ".join(f"{value:.3f}" for value in values) + " |")


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, run, argv, prog="intensity_baselines.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
