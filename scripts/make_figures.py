"""Regenerate the figures and result tables of the docs: `python scripts/make_figures.py [--only NAME ...]`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from anomaly_lib.data.demo import CATEGORIES, render

ROOT = Path(__file__).resolve().parent.parent


def demo_contact_sheet(folder: Path) -> Path:
    """One normal image and the largest of five of each defect kind, a row per demo category."""
    tile = 104
    columns = 1 + max(len(category.defects) for category in CATEGORIES.values())
    sheet = Image.new("RGB", (columns * tile, len(CATEGORIES) * tile))
    for row, (name, category) in enumerate(CATEGORIES.items()):
        for column, defect in enumerate(["good", *category.defects]):
            images, masks = render(name, defect, 5)
            largest = int(masks.sum(axis=(1, 2)).argmax())
            picture = Image.fromarray(images[largest]).resize((tile, tile), Image.Resampling.LANCZOS)
            sheet.paste(picture, (column * tile, row * tile))
    path = folder / "demo_contact_sheet.png"
    sheet.quantize(160, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


FIGURES: dict[str, Callable[[Path], Path]] = {"demo_contact_sheet": demo_contact_sheet}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=sorted(FIGURES), help="default: all")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "figures")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.only or FIGURES:
        print(FIGURES[name](args.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
