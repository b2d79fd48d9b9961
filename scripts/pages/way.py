"""The picture of the whole way: a folder of good parts, a decision on a new one, a report."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import anomaly_lib
from anomaly_lib.data.demo.items import write_demo
from anomaly_lib.data.images import list_images
from anomaly_lib.errors import UserError

PART, SIDE = "brushed_metal", 256
WIDTH, HEIGHT, EDGE, ARROW = 1560, 560, 28, 64
PANELS = (420, 420, 508)  # widths
INK, SOFT, PAPER, BAND = "#1b1f24", "#5a6270", "#ffffff", "#f4f6f8"
BAD, GOOD = "#d55e00", "#0072b2"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def make_way(folder: Path) -> Path:
    """Train, decide and report on drawn parts, and put the three pictures side by side."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_demo(root / "parts", categories=[PART], size=SIDE, train=24, test_good=12, per_defect=4)
        parts = root / "parts" / PART
        detector = anomaly_lib.fit("fewshot", parts, backbone="demo-clip", output_dir=str(root / "run"), figures=False)
        page = detector.report(root / "page", parts)
        found = detector.predict(parts / "test" / "scratch")
        first = int(found.score.argmax())
        panels = [
            folder_panel(list_images(parts / "train" / "good")),
            decision_panel(found.overlay(first), found.rows()[first]),
            report_panel(page, root),
        ]
    path = folder / "way.png"
    side_by_side(panels, ("a folder of good parts", "a decision on a new one", "a report")).quantize(
        256, kmeans=2
    ).save(path, optimize=True)
    return path


def font(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's own, which lies wherever matplotlib does."""
    from matplotlib.font_manager import findfont

    return ImageFont.truetype(findfont("DejaVu Sans"), size)


def sheet(width: int) -> Image.Image:
    return Image.new("RGB", (width, HEIGHT - 2 * EDGE - 40), BAND)


def folder_panel(files: Sequence[Path], columns: int = 3, gap: int = 10) -> Image.Image:
    """Thumbnails of good parts."""
    panel = sheet(PANELS[0])
    side = (panel.width - (columns + 1) * gap) // columns
    rows = (panel.height - gap) // (side + gap)
    for number, file in enumerate(files[: rows * columns]):
        with Image.open(file) as picture:
            tile = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        panel.paste(tile, (gap + number % columns * (side + gap), gap + number // columns * (side + gap)))
    return panel


def decision_panel(overlay: np.ndarray, row: dict[str, object]) -> Image.Image:
    """The heat map of a new part, and what is said of it."""
    panel = sheet(PANELS[1])
    side = panel.height - 84
    panel.paste(Image.fromarray(overlay).resize((side, side), Image.Resampling.LANCZOS), ((panel.width - side) // 2, 0))
    pen = ImageDraw.Draw(panel)
    word, colour = ("anomalous", BAD) if row["anomalous"] else ("normal", GOOD)
    pen.text((panel.width // 2, side + 28), word, fill=colour, font=font(28), anchor="mm")
    figures = ", ".join(f"{name.replace('_', '-')} {row[name]:.2g}" for name in ("score", "p_value") if name in row)
    pen.text((panel.width // 2, side + 62), figures, fill=SOFT, font=font(18), anchor="mm")
    return panel


def report_panel(page: Path, root: Path) -> Image.Image:
    """The report as a browser shows it."""
    browser = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if browser is None:
        raise UserError("the picture of the report needs Chromium (Debian: apt-get install chromium)")
    panel, picture = sheet(PANELS[2]), root / "page.png"
    size = f"--window-size={2 * panel.width},{2 * panel.height}"
    words = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", size, f"--screenshot={picture}"]
    subprocess.run([*words, "--virtual-time-budget=3000", page.as_uri()], check=True, capture_output=True)
    with Image.open(picture) as shot:
        panel.paste(shot.convert("RGB").resize(panel.size, Image.Resampling.LANCZOS))
    ImageDraw.Draw(panel).rectangle((0, 0, panel.width - 1, panel.height - 1), outline=BAND, width=2)
    return panel


def side_by_side(panels: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """The panels with their titles, an arrow from each to the next."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen, x = ImageDraw.Draw(picture), EDGE
    for number, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        if number:
            middle = HEIGHT // 2 + 20
            pen.line((x + 12, middle, x + ARROW - 24, middle), fill=SOFT, width=5)
            tip = x + ARROW - 12
            pen.polygon([(tip, middle), (tip - 16, middle - 11), (tip - 16, middle + 11)], fill=SOFT)
            x += ARROW
        pen.text((x, EDGE + 12), title, fill=INK, font=font(24), anchor="lm")
        picture.paste(panel, (x, EDGE + 40))
        x += panel.width
    return picture
