"""The systems there are, and the way from a checkpoint file to its detector.

Each system is a package of this folder with ``options.py`` (`Args`, `tiny`; imports no torch), ``train.py`` (`train`)
and ``detector.py`` (`load`). One whose authors released checkpoints also has ``released.py`` (`adopt`).
"""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from anomaly_lib.errors import UserError, reason_of
from anomaly_lib.types import RunResult

if TYPE_CHECKING:
    from anomaly_lib.config import Options
    from anomaly_lib.detect.contract import Detector, System
    from anomaly_lib.engine.checkpoint import Checkpoint


@dataclass(frozen=True)
class LazySystem:
    """A system of this folder; its modules are imported on first use."""

    name: str  # what a checkpoint says under "system"
    package: str  # below anomaly_lib.systems
    released: bool = False  # its authors published checkpoints

    def _module(self, name: str) -> ModuleType:
        return importlib.import_module(f"anomaly_lib.systems.{self.package}.{name}")

    @property
    def Args(self) -> "type[Options]":
        return self._module("options").Args  # type: ignore[no-any-return]

    def tiny(self, **changes: Any) -> Any:
        return self._module("options").tiny(**changes)

    def train(self, args: Any) -> RunResult:
        return self._module("train").train(args)  # type: ignore[no-any-return]

    def load(
        self, checkpoint: "Checkpoint", *, device: str = "auto", weights: str | None = None, which: str = "auto"
    ) -> "Detector":
        return self._module("detector").load(checkpoint, device=device, weights=weights, which=which)  # type: ignore[no-any-return]

    def adopt(self, content: Mapping[str, Any], path: Path) -> "Checkpoint | None":
        return self._module("released").adopt(content, path) if self.released else None


class Registry(Mapping[str, "System"]):
    """Systems by name. Programs over detectors are handed one."""

    def __init__(self, *systems: "System") -> None:
        self._systems = {system.name: system for system in systems}

    def __getitem__(self, name: str) -> "System":
        if name not in self._systems:
            raise UserError(f"unknown system {name!r}; there are {', '.join(sorted(self._systems))}")
        return self._systems[name]

    def __contains__(self, name: object) -> bool:
        return name in self._systems

    def __iter__(self) -> Iterator[str]:
        return iter(self._systems)

    def __len__(self) -> int:
        return len(self._systems)

    def read(self, path: str | Path) -> "Checkpoint":
        """A checkpoint file, ours or one that a system's authors released; the file is opened once."""
        from anomaly_lib.backbones.weights import read_torch_file
        from anomaly_lib.engine.checkpoint import Checkpoint, check_format, is_ours, verify_records

        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such checkpoint")
        verify_records(path)
        content = read_torch_file(path)
        if is_ours(content):
            check_format(path, content)
            return Checkpoint(path, content)
        for system in self.values():
            found = system.adopt(content, path) if isinstance(content, Mapping) else None
            if found is not None:
                return replace(found, adopted=True)
        raise UserError(
            f"{path}: not a checkpoint of this library, nor one of the original PromptAD, SOWA or crystal programs "
            "(scripts/convert_detector.py reads those of anomalib)"
        )

    def load(
        self, path: str | Path, *, device: str = "auto", weights: str | None = None, which: str = "auto"
    ) -> "Detector":
        """The trained detector of any checkpoint, ready for ``detector.predict(...)``."""
        return self.detector_of(self.read(path), device=device, weights=weights, which=which)

    def detector_of(
        self, checkpoint: "Checkpoint", *, device: str = "auto", weights: str | None = None, which: str = "auto"
    ) -> "Detector":
        """The same of a checkpoint that has been read."""
        system = self[checkpoint.system]
        try:
            return system.load(checkpoint, device=device, weights=weights, which=which)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise UserError(
                f"{checkpoint.path}: no complete checkpoint of {system.name} "
                f"({type(error).__name__}: {reason_of(error)})"
            ) from error


SYSTEMS = Registry(
    LazySystem("promptad", "promptad", released=True),
    LazySystem("sowa", "sowa", released=True),
    LazySystem("causal_film", "weld.causal_film"),
    LazySystem("video_ae", "weld.video_ae"),
    LazySystem("weld_supcon", "weld.supcon"),
    LazySystem("crystal", "crystal", released=True),
    LazySystem("detectors", "detectors"),
    LazySystem("hdmap", "detectors.hdmap"),
)
