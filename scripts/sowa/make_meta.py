"""Write the meta.json that SOWA (and ``--dataset meta``) reads, for five data sets and for any folder.

python scripts/sowa/make_meta.py mvtec PATH     # MVTec AD; the same layout: btad, dtd (DTD-Synthetic)
python scripts/sowa/make_meta.py visa PATH
python scripts/sowa/make_meta.py dagm PATH      # Class1/Train|Test/*.PNG, Class1/Test/Label/*_label.PNG
python scripts/sowa/make_meta.py folder PATH    # train/good, test/good, test/anything, masks where there are any
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_lib.data import Item, open_dataset, write_meta
from anomaly_lib.errors import UserError

LAYOUTS = {"mvtec": "mvtec", "btad": "btad", "dtd": "mvtec", "visa": "visa", "folder": "folder", "demo": "mvtec"}


def read_dagm(root: Path) -> list[Item]:
    """DAGM 2007: an image is anomalous where Label/ holds a mask of its name."""
    items = []
    for folder in sorted(root.glob("Class*")):
        for split in ("Train", "Test"):
            for image in sorted((folder / split).glob("*.PNG")):
                mask = folder / split / "Label" / f"{image.stem}_label.PNG"
                found = mask if mask.is_file() else None
                defect = "bad" if found else "good"
                items.append(Item(image, int(found is not None), folder.name, split.lower(), defect, found))
    if not items:
        raise UserError(f"{root}: no Class*/Train|Test/*.PNG below it; is this DAGM 2007?")
    return items


def main(argv: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("layout", choices=sorted([*LAYOUTS, "dagm"]))
    flags.add_argument("root", type=Path)
    args = flags.parse_args(argv)
    try:
        items = read_dagm(args.root) if args.layout == "dagm" else open_dataset(LAYOUTS[args.layout], args.root)
        path = write_meta(items, args.root)
    except UserError as error:
        print(f"make_meta.py: {error}", file=sys.stderr)
        return 2
    classes = sorted({item.class_name for item in items})
    print(f"{path}: {len(items)} images of {len(classes)} classes ({', '.join(classes)})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
