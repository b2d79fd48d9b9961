"""From MATLAB files (key ``Xdata``, [31, 95, 1, N]) to the HDMAP folder layout of either generation."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from anomaly_lib.errors import UserError, reason_of
from anomaly_lib.files import check_file
from anomaly_lib.systems.detectors.hdmap.names import DOMAINS
from anomaly_lib.systems.detectors.hdmap.reader import check_domain, save_map

# Domain -> (operating condition, sensor). The map changed between the two generations; names are only names.
CLASS_SENSOR_OLD = {"domain_A": (1, 1), "domain_B": (3, 1), "domain_C": (1, 3), "domain_D": (3, 3)}
CLASS_SENSOR_NEW = {"domain_A": (1, 3), "domain_B": (1, 1), "domain_C": (3, 3), "domain_D": (3, 1)}
DOMAIN_MAX = {"domain_A": 0.324670, "domain_B": 1.324418, "domain_C": 0.087341, "domain_D": 0.418999}
NORMAL, FAULT = "Normal/Normal2_LSSm0.3_HSS0", "Planet_fault_ring/1.42_LSSm0.3_HSS0"
VERSION = re.compile(
    r"(?P<count>\d+)_(?:(?P<bits>8bit|16bit)_(?P<fit>original|resize_pad|pad_to|resize)(?:_(?P<h>\d+)x(?P<w>\d+))?"
    r"|(?P<file>tiff|png)_(?P<norm>original|zscore|minmax))"
)


@dataclass(frozen=True)
class Version:
    """What a version string such as ``1000_8bit_resize_224x224`` or ``1000_tiff_minmax`` asks for."""

    name: str
    count: int
    kind: str  # 8bit | 16bit | tiff
    fit: str  # original | resize_pad | pad_to | resize
    size: tuple[int, int] | None
    norm: str  # per_image | original | zscore | minmax

    @classmethod
    def parse(cls, name: str) -> "Version":
        match = VERSION.fullmatch(name)
        if match is None or (match["fit"] not in (None, "original") and match["h"] is None):
            raise UserError(
                f"version={name}: expected e.g. 1000_8bit_resize_224x224, 1000_16bit_original or 1000_tiff_minmax"
            )
        size = (int(match["h"]), int(match["w"])) if match["h"] else None
        if match["bits"]:
            return cls(name, int(match["count"]), match["bits"], match["fit"], size, "per_image")
        kind = "tiff" if match["file"] == "tiff" else "16bit"
        return cls(name, int(match["count"]), kind, "original", None, match["norm"])


def read_mat(path: Path) -> np.ndarray:
    """[N, 31, 95] float32 of one MATLAB file."""
    from scipy.io import loadmat

    check_file(path, ".mat file")
    try:
        content = loadmat(path)
    except Exception as error:  # noqa: BLE001  (scipy's reader of damaged files raises many kinds)
        raise UserError(f"{path}: not a readable .mat file ({reason_of(error)}); save it with MATLAB's -v7") from None
    if "Xdata" not in content:
        names = sorted(name for name in content if not name.startswith("__"))
        raise UserError(f"{path}: no variable Xdata in it (it has {', '.join(names) or 'none'})")
    data = np.asarray(content["Xdata"])
    if data.ndim != 4 or data.shape[2] != 1 or not data.size or data.dtype.kind not in "fiu":
        raise UserError(f"{path}: Xdata must be numbers [height, width, 1, count], got {data.dtype} {list(data.shape)}")
    data = data.astype(np.float32)
    if not np.isfinite(data).all():
        raise UserError(f"{path}: Xdata has non-finite values")
    return data[:, :, 0].transpose(2, 0, 1)


def mat_paths(root: Path, condition: int, sensor: int) -> dict[tuple[str, str], Path]:
    """(split, group) -> file, as the raw data set is laid out."""

    def place(kind: str, split: str) -> Path:
        return root / kind / f"Class{condition}" / "1" / "HDMap_train_test" / f"{sensor}_TSA_DIF_{split}.mat"

    return {
        ("train", "good"): place(NORMAL, "train"),
        ("test", "good"): place(NORMAL, "test"),
        ("test", "fault"): place(FAULT, "test"),
    }


def convert(
    mat_root: Path | str,
    output: Path | str,
    *,
    version: str,
    domain_map: Mapping[str, tuple[int, int]] | None = None,
    test_count: int | None = None,
    seed: int = 42,
) -> Path:
    """Write ``{output}/HDMAP/{version}/domain_*`` and answer that folder.

    Old versions take the first N maps and scale each one by its own minimum and maximum; new ones draw N training maps
    without replacement and scale a domain as a whole.
    """
    wanted = Version.parse(version)
    if domain_map is None:
        domain_map = CLASS_SENSOR_OLD if wanted.norm == "per_image" else CLASS_SENSOR_NEW
    folder = Path(output) / "HDMAP" / version
    for domain in DOMAINS:
        if domain not in domain_map:
            continue
        groups = {key: read_mat(path) for key, path in mat_paths(Path(mat_root), *domain_map[domain]).items()}
        write_domain(folder, domain, groups, version=wanted, test_count=test_count, seed=seed)
    return folder


def write_domain(
    folder: Path,
    domain: str,
    groups: Mapping[tuple[str, str], np.ndarray],
    *,
    version: Version,
    test_count: int | None = None,
    seed: int = 42,
) -> None:
    """One domain's maps {(split, group): [N, H, W]} as numbered files."""
    check_domain(domain)
    train = groups["train", "good"]
    scale = (float(train.mean()), float(train.std()))
    for (split, group), maps in groups.items():
        count = min(version.count if split == "train" else test_count or version.count, len(maps))
        if split == "train" and version.norm != "per_image":
            picks = np.random.default_rng(seed).choice(len(maps), count, replace=False)
            maps = maps[picks]
        for number, values in enumerate(maps[:count]):
            fitted = _fit(_normalise(values, domain, version.norm, scale), version)
            save_map(folder / domain / split / group / f"{number:06d}", fitted, version.kind)


def _normalise(values: np.ndarray, domain: str, norm: str, scale: tuple[float, float]) -> np.ndarray:
    if norm == "per_image":
        span = float(values.max() - values.min())
        return (values - values.min()) / (span or 1.0)
    if norm == "zscore":
        return (values - scale[0]) / (scale[1] or 1.0)
    return values / DOMAIN_MAX[domain] if norm == "minmax" else values


def _fit(values: np.ndarray, version: Version) -> np.ndarray:
    """`resize` stretches (Lanczos), `resize_pad` keeps the aspect and pads, `pad_to` only pads; zeros outside."""
    if version.fit == "original" or version.size is None:
        return values
    height, width = version.size
    inner = {"resize": version.size, "pad_to": values.shape}.get(version.fit)
    if inner is None:
        scale = min(height / values.shape[0], width / values.shape[1])
        inner = max(1, round(values.shape[0] * scale)), max(1, round(values.shape[1] * scale))
    if inner[0] > height or inner[1] > width:
        raise UserError(f"version={version.name}: a {inner[0]}x{inner[1]} map cannot be padded to {height}x{width}")
    if inner != values.shape:
        resized = Image.fromarray(values.astype(np.float32)).resize((inner[1], inner[0]), Image.Resampling.LANCZOS)
        values = np.asarray(resized)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    field = np.zeros((height, width), dtype=np.float32)
    field[top : top + inner[0], left : left + inner[1]] = values
    return field
