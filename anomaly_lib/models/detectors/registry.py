"""Which detectors there are: a table of names, options and where their modules lie. This file loads no torch.

A file of your own registers its detector where it defines it, and is named with ``plugin=``:

    @register("histogram", config=HistogramConfig)
    class Histogram(nn.Module): ...

An installed package names the module that does so in its metadata, as the entry point ``histogram`` of `GROUP`.
"""

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from anomaly_lib import parts
from anomaly_lib.config import Options, Preset
from anomaly_lib.errors import OptionError, reason_of

ROOM = "anomaly_lib.models.detectors"
GROUP = "anomaly_lib.detectors"  # of entry points
Class = TypeVar("Class", bound=type)


@dataclass(frozen=True, eq=False)
class Entry:
    """A detector by name: the options of its module, and what it means by the options that all detectors share."""

    name: str
    config: type[Options]
    module: type | str  # the class, or "FILE:CLASS" of this folder, imported when it is used
    frozen: bool = True  # reads a frozen network: a FeatureDetector
    trained: bool = False  # in epochs, by `training_losses`; otherwise fitted in one pass
    leaves_out: bool = False  # judges a normal image by all the others; otherwise some are kept from it to decide
    transductive: bool = False  # a score depends on the images scored with it, so that nothing can be promised of it
    placed: bool = False  # knows what belongs at each place of an image, so that it cannot learn from tiles
    published: Mapping[str, Any] = field(default_factory=dict)  # shared options as its authors set them
    demo: Mapping[str, Any] = field(default_factory=dict)  # what differs on the built-in pictures
    small: Mapping[str, Any] = field(default_factory=dict)  # for seconds on a CPU, without weights
    presets: Sequence[Preset] = ()

    def load(self) -> type:
        """The module's class."""
        if isinstance(self.module, type):
            return self.module
        file, _, name = self.module.partition(":")
        made: type = getattr(importlib.import_module(f"{ROOM}.{file}"), name)
        return made


_ENTRIES: dict[str, Entry] = {}
_FILES: set[Path] = set()  # plugins that have been run


def add(entry: Entry) -> None:
    """Make a detector known. A name stands for one detector."""
    earlier = _ENTRIES.get(entry.name)
    if earlier is not None and _place(earlier) != _place(entry):
        raise OptionError(f"there is a detector {entry.name!r} already; choose another name")
    _ENTRIES[entry.name] = entry


def _place(entry: Entry) -> str:
    return entry.module if isinstance(entry.module, str) else f"{entry.module.__module__}.{entry.module.__qualname__}"


def register(name: str, *, config: type[Options], **facts: Any) -> Callable[[Class], Class]:
    """Decorate a detector's module class to make it known; `facts` are fields of `Entry`.

    What is not said is seen from the class: `FeatureDetector`s read a frozen network, ``training_losses`` are for
    training in epochs, ``least_images`` for leaving one image out.
    """

    def keep(module: Class) -> Class:
        seen: dict[str, Any] = {
            "frozen": hasattr(module, "fit_features"),
            "trained": hasattr(module, "training_losses"),
            "leaves_out": getattr(module, "least_images", None) is not None,
            "transductive": getattr(module, "transductive", False),
        }
        add(Entry(name, config, module, **(seen | facts)))
        return module

    return keep


def entry_of(name: str) -> Entry:
    """The detector of that name; one of an installed package is imported now."""
    _built_in()
    if name not in _ENTRIES:
        _load_installed(str(name))
    if name not in _ENTRIES:
        known = names()
        close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        remedy = f"; did you mean {close[0]}?" if close else " (a detector of your own: give plugin=, its file)"
        raise OptionError(f"model={name}: choose from {', '.join(known)}{remedy}")
    return _ENTRIES[name]


def names() -> list[str]:
    """Names of all detectors, those of installed packages too, of which nothing is imported."""
    return list(dict.fromkeys([*(entry.name for entry in entries()), *(point.name for point in _installed())]))


def entries() -> list[Entry]:
    """All detectors that are known now."""
    _built_in()
    return list(_ENTRIES.values())


def _built_in() -> None:
    if "patchcore" not in _ENTRIES:
        importlib.import_module(f"{ROOM}.entries")


def _installed() -> list[EntryPoint]:
    return sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))


def _load_installed(name: str) -> None:
    """Import what an installed package says of a detector, if one does."""
    points = {point.value: point for point in _installed() if point.name == name}
    owners = ", ".join(point.dist.name if point.dist else value for value, point in points.items())
    if len(points) > 1:
        raise OptionError(f"model={name}: several packages have a detector of this name ({owners}); uninstall one")
    for value, point in points.items():
        with _registering(f"model={name} of the package {owners} ({value})", name):
            point.load()


def load_plugin(file: str | Path) -> None:
    """Run a Python file that registers detectors, or parts of systems. Only a file that the user names is ever run."""
    path = Path(file).resolve()
    if path in _FILES:
        return
    if not path.is_file():
        raise OptionError(f"plugin={file}: no such file")
    spec = importlib.util.spec_from_file_location(f"anomaly_lib_plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise OptionError(f"plugin={file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up there
    with _registering(f"plugin={file}"):
        spec.loader.exec_module(module)
    _FILES.add(path)


@contextmanager
def _registering(source: str, name: str | None = None) -> Iterator[None]:
    """Around code of a user's: what it raises is one line, and so is that it registers nothing (of that name)."""
    before, others = set(_ENTRIES), parts.names()
    try:
        yield
    except Exception as error:  # whatever a user's file raises
        raise OptionError(f"{source}: {type(error).__name__}: {reason_of(error)}") from error
    if name is None and parts.names() != others:
        return  # parts of a system, no detector
    if set(_ENTRIES) == before or name not in {None, *_ENTRIES}:
        missing, shown = ("", "NAME") if name is None else (" of this name", repr(name))
        remedy = f"decorate its class with @register({shown}, config=...)"
        raise OptionError(f"{source}: registers no detector{missing}; {remedy}")
