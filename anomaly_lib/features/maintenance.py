"""`python -m anomaly_lib cache info|clear`."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from anomaly_lib.errors import UserError
from anomaly_lib.features.shards import ShardFolder
from anomaly_lib.features.spec import FeatureSpec
from anomaly_lib.features.store import default_cache_dir


@dataclass(frozen=True)
class StoreInfo:
    folder: Path
    backbone: str
    outputs: tuple[str, ...]
    rows: int
    row: str  # names, shapes, types
    size: int  # bytes on disk

    def __str__(self) -> str:
        return f"{self.folder.name}: {self.rows} rows of {self.row or 'nothing yet'}, {self.size / 2**20:.1f} MiB"


def store_info(root: Path | str | None = None) -> list[StoreInfo]:
    """The stores under `root` (the default cache folder without one)."""
    infos = []
    for folder in _stores(root):
        spec = _spec_of(folder)
        shards = ShardFolder(folder)
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        row = shards.layout.describe() if shards.layout is not None else ""
        backbone = spec.backbone if spec else folder.name.rpartition("-")[0]
        infos.append(StoreInfo(folder, backbone, tuple(spec.outputs) if spec else (), len(shards), row, size))
    return infos


def _spec_of(folder: Path) -> FeatureSpec | None:
    """What spec.json says, if it is whole: the folder's name is its hash."""
    try:
        spec = FeatureSpec(**json.loads((folder / "spec.json").read_bytes()))
        return spec if spec.folder_name == folder.name else None
    except (OSError, ValueError, TypeError, AttributeError, UserError):
        return None


def clear_store(root: Path | str | None = None) -> int:
    """Delete the stores under `root`, nothing else; the number of bytes freed."""
    freed = sum(info.size for info in store_info(root))
    for folder in _stores(root):
        shutil.rmtree(folder)
    return freed


def _stores(root: Path | str | None) -> list[Path]:
    base = Path(root or default_cache_dir()).expanduser()
    return sorted(path.parent for path in base.glob("*/spec.json"))
