"""Write the meta.json that SOWA (and ``--dataset meta``) reads, for five data sets and for any folder.

python scripts/sowa/make_meta.py --dataset mvtec --data-path PATH

mvtec: MVTec AD, and the same layout: btad, dtd (DTD-Synthetic). visa. dagm: Class1/Train|Test/*.PNG with masks
Class1/Test/Label/*_label.PNG. folder: train/good, test/good, test/anything, masks where there are any.
The two words alone, ``make_meta.py mvtec PATH``, mean the same.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from anomaly_lib.bare_words import name_bare_words
from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg
from anomaly_lib.errors import UserError

if TYPE_CHECKING:
    from anomaly_lib.data import Item

LAYOUTS = {"mvtec": "mvtec", "btad": "btad", "dtd": "mvtec", "visa": "visa", "folder": "folder", "demo": "mvtec"}


@dataclass
class MetaArgs(Options):
    """The data set."""

    dataset: Optional[str] = arg(None, "which data set it is", type=str, choices=sorted([*LAYOUTS, "dagm"]))
    data_path: Optional[str] = arg(None, "its folder, which meta.json is written into", type=str)


def read_dagm(root: Path) -> "list[Item]":
    """DAGM 2007: an image is anomalous where Label/ holds a mask of its name."""
    from anomaly_lib.data import Item

    items = []
    for folder in sorted(root.glob("Class*")):
        for split in ("Train", "Test"):
            for image in sorted((folder / split).glob("*.PNG")):
                mask = folder / split / "Label" / f"{image.stem}_label.PNG"
                found = mask if mask.is_file() else None
                defect = "bad" if found else "good"
                items.append(Item(image, int(found is not None), folder.name, split.lower(), defect, found))
    if not items:
        raise UserError(f"data_path={root}: no Class*/Train|Test/*.PNG below it; is this DAGM 2007?")
    return items


def write(args: MetaArgs) -> None:
    """Read the folder in its layout, write meta.json."""
    from anomaly_lib.data import open_dataset, write_meta

    if args.dataset is None or args.data_path is None:
        raise UserError("give dataset=NAME and data_path=FOLDER")
    root = Path(args.data_path)
    items = read_dagm(root) if args.dataset == "dagm" else open_dataset(LAYOUTS[args.dataset], root)
    path = write_meta(items, root)
    classes = sorted({item.class_name for item in items})
    print(f"{path}: {len(items)} images of {len(classes)} classes ({', '.join(classes)})")


def main(argv: Sequence[str] | None = None) -> int:
    words = name_bare_words(sys.argv[1:] if argv is None else argv, MetaArgs, ["dataset", "data_path"])
    return command(MetaArgs, write, words, prog="make_meta.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
