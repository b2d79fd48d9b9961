"""Tables of parts by name that a file of your own may add to (``plugin=``); such a table is an option's choices too.

    @ADAPTERS.register("mine")
    def mine(attn, grid, config): ...

Importing this loads no torch: what is built in is written "MODULE:NAME" and imported when it is used.
"""

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from anomaly_lib.errors import OptionError

Part = TypeVar("Part")


class Parts(dict[str, Any]):
    """Name -> part. `room` is the package that the names of built-in ones are relative to."""

    def __init__(self, what: str, room: str, built_in: dict[str, str]) -> None:
        super().__init__(built_in)
        self.what, self.room = what, room
        TABLES.append(self)

    def register(self, name: str) -> Callable[[Part], Part]:
        """Decorate a part to make it known. A name stands for one part."""

        def keep(part: Part) -> Part:
            known = self.get(name)
            if known is not None and getattr(known, "__qualname__", known) != getattr(part, "__qualname__", part):
                raise OptionError(f"there is a {self.what} {name!r} already; choose another name")
            self[name] = part
            return part

        return keep

    def part(self, name: str) -> Any:
        """The part of that name."""
        part = self[name]
        if not isinstance(part, str):
            return part
        module, _, attribute = part.partition(":")
        return getattr(importlib.import_module(f"{self.room}.{module}"), attribute)


TABLES: list[Parts] = []


def names() -> frozenset[tuple[str, str]]:
    """(table, name) of every part that is known now."""
    return frozenset((table.what, name) for table in TABLES for name in table)
