"""Names that a package offers without importing the files they lie in (PEP 562)."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of `package`; `places`: name -> module below the package it lies in.

    A place ``"module:other_name"`` offers `other_name` of the module under another name.
    """

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, inner = places[name].partition(":")
        return getattr(importlib.import_module(f"{package}.{module}"), inner or name)

    return find, lambda: sorted(places)
