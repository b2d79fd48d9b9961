"""Convert HDMAP MATLAB files to image folders: --mat-root DIR --output-dir datasets --version 1000_tiff_minmax."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg


@dataclass
class Args(Options):
    """Conversion of HDMAP's MATLAB files."""

    mat_root: str = arg("KRISS_share_nipa2023", "folder with Normal/ and Planet_fault_ring/")
    output_dir: str = arg("datasets", "HDMAP/VERSION is made below it")
    version: str = arg("1000_tiff_minmax", "e.g. 1000_8bit_resize_pad_256x256, 1000_16bit_original, 1000_tiff_minmax")
    domain_map: str = arg("auto", "which condition and sensor a domain is", choices=["auto", "old", "new"])
    test_count: Optional[int] = arg(
        None, "test maps per class; None = as many as the version says", type=int, at_least=1
    )
    seed: int = arg(42, "of the random choice of training maps", at_least=0)


def run(args: Args) -> None:
    from anomaly_lib.systems.detectors.hdmap.convert import CLASS_SENSOR_NEW, CLASS_SENSOR_OLD, convert

    maps = {"old": CLASS_SENSOR_OLD, "new": CLASS_SENSOR_NEW, "auto": None}
    folder = convert(
        args.mat_root, args.output_dir, version=args.version, domain_map=maps[args.domain_map],
        test_count=args.test_count, seed=args.seed,
    )  # fmt: skip
    print(f"written: {folder}")


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, run, argv, prog="convert_mat.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
