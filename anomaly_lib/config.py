"""Options: declared once in a dataclass, read alike from argv, from a JSON file and from keyword arguments.

A class derived from `Options` declares every option with ``arg(default, help)``. ``Args(fusion_mode="x")`` in a
notebook means the same as ``--fusion-mode x`` (`command_line.parse`): presets fill what is not given, and every value
and every combination is checked where the object is made.

Order of precedence: default < presets of the class, in their order < ``--config FILE`` < flags.
Files that declare Args must not use ``from __future__ import annotations``: the package reads real types.
"""

import argparse
import copy
import difflib
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, Union, cast, get_args, get_origin

from anomaly_lib.errors import OptionError

Switch = Annotated[bool, "takes an optional value: --x, --x True, --x False, --no-x"]
TRUE = frozenset({"true", "yes", "on", "1", "t", "y"})
FALSE = frozenset({"false", "no", "off", "0", "f", "n"})
ANY = object()  # of `needs`: whatever is neither None, False nor empty
LARGEST_INT = 2**53  # what a float64 and a JSON reader still hold exactly
A = TypeVar("A")


# -- declaring ------------------------------------------------------------------------------------------------------


def arg(
    default: Any,
    help: str,
    *,
    aliases: Sequence[str] = (),
    choices: Collection[Any] | None = None,
    type: Callable[[str], Any] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    length: int | None = None,
    needs: Mapping[str, Any] | None = None,
    result: bool = True,
    resumable: bool = False,
) -> Any:
    """One option. `aliases` are the originals' other spellings; a ``None`` default needs its `type` said.

    `length`: how many values a list takes. `needs`: what other options must be for this one to have an effect (a tuple
    of values that all do, or `ANY` for anything but None, False and nothing; of a list one of its values); given
    without that, it is refused. "a|b" stands for either of two options. What it needs may be an option that only a
    derived class has, e.g. which of several models is trained.
    `result`: False where it says how or where a run happens and has no part in what comes out of it, so that a run may
    go on in the same folder with another value. `resumable`: a run that is resumed may be given another value of it,
    although it has a part in the result.
    """
    if default is None and type is None:
        raise TypeError("an option whose default is None must say its type")
    metadata: dict[str, Any] = {
        "raw_help": help,
        "aliases": [dashed(alias if alias.startswith("-") else f"--{alias}") for alias in aliases],
        "at_least": at_least,
        "at_most": at_most,
        # A table that grows is kept: what a file of the user's adds to it is a choice too.
        "options": choices if choices is None or isinstance(choices, dict) else list(choices),
        "length": length,
        "needs": dict(needs or {}),
        "result": result,
        "resumable": resumable,
    }
    metadata["help"] = _help_text(help, default, metadata)
    if isinstance(default, bool):
        metadata |= {"type": to_bool, "metavar": "True|False"}
    elif isinstance(default, list):
        metadata |= {"type": type or (default[0].__class__ if default else str), "nargs": "+"}
        return field(default_factory=lambda: list(default), metadata=metadata)
    elif type is not None:
        metadata["type"] = type
    return field(default=default, metadata=metadata)


def override(
    owner: Any,
    name: str,
    default: Any = MISSING,
    *,
    help: str | None = None,
    aliases: Sequence[str] = (),
    choices: Collection[Any] | None = None,
    needs: Mapping[str, Any] | None = None,
    resumable: bool | None = None,
) -> Any:
    """The option `name` of a shared group with another default, help, choices or more aliases for one system."""
    base: Field[Any] = next(f for f in fields(owner) if f.name == name)
    meta = base.metadata
    kept = default_of(base)
    return arg(
        kept if default is MISSING else default,
        help or meta["raw_help"],
        aliases=[*meta["aliases"], *aliases],
        choices=choices or meta["options"],
        type=None if isinstance(kept, bool) else meta.get("type"),
        at_least=meta["at_least"],
        at_most=meta["at_most"],
        length=meta["length"],
        needs=meta["needs"] if needs is None else needs,
        result=meta["result"],
        resumable=meta["resumable"] if resumable is None else resumable,
    )


def default_of(f: "Field[Any]") -> Any:
    """A fresh copy of a field's default."""
    return f.default_factory() if f.default_factory is not MISSING else f.default


@dataclass(frozen=True)
class Preset:
    """Values that follow from others: where every option of `when` has its value, those of `then` are the defaults.

    A value of `when` may be a tuple of values that all count. An option of `unless` that was given switches the preset
    off. What the user gives explicitly always wins over `then`.
    """

    when: Mapping[str, Any]
    then: Mapping[str, Any]
    unless: Sequence[str] = ()

    def applies(self, values: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
        if any(given.get(name) not in (None, []) for name in self.unless):
            return False
        return all(
            values.get(name) in wanted if isinstance(wanted, tuple) else values.get(name) == wanted
            for name, wanted in self.when.items()
        )


class _FilledFromPresets(type):
    """Calling an options class fills what is not given from its presets, as the command line does."""

    def __call__(cls: type[A], **given: Any) -> A:  # type: ignore[misc]
        cls = cast(type[A], cls.variant(given))  # type: ignore[attr-defined]
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        for name in given:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                remedy = f"; did you mean {close[0]}?" if close else ""
                foreign = cls.foreign(name)  # type: ignore[attr-defined]
                none = f"{cls.__name__} has no option {name!r}{remedy}"
                raise OptionError(f"{name}={shown(given[name])}: {foreign}" if foreign else none)
        args = cast(A, type.__call__(cls, **(cls.implied(given) | given)))  # type: ignore[attr-defined]
        note_given(args, given)
        if given.get("resume") is None:  # else the other options are in a file, and `engine.resume` checks all of them
            refuse_without_effect(args, given)
        return args


@dataclass
class Options(metaclass=_FilledFromPresets):
    """Base of every options class: presets fill what is not given, then each value and combination is checked."""

    __slots__ = ("_given",)  # names of what was given; a slot is no part of vars(args)
    PRESETS: ClassVar[Sequence[Preset]] = ()
    """Presets of this class; those of its bases come before them, so that a derived class has the last word."""
    CHOOSES: ClassVar[Sequence[str]] = ()
    """Options whose values decide which others there are (`variant`)."""

    def __post_init__(self) -> None:
        check_values(self)
        for owner in reversed(type(self).__mro__):
            if "check" in vars(owner):
                vars(owner)["check"](self)

    @classmethod
    def variant(cls, given: Mapping[str, Any]) -> "type[Options]":  # noqa: ARG003 - of the classes that have variants
        """The class whose options `given` chooses, e.g. those of one of several models; as a rule the class itself."""
        return cls

    @classmethod
    def saved_variant(cls, saved: Mapping[str, Any]) -> "type[Options]":
        """The class whose options a file's own word chooses, which is not to be trusted."""
        return cls.variant(saved)

    @classmethod
    def foreign(cls, name: str) -> str | None:  # noqa: ARG003
        """What to say of an option that only other variants have, e.g. "only for model=padim"; None: none has it."""
        return None

    @classmethod
    def presets(cls) -> list[Preset]:
        """All presets in the order in which they apply."""
        return [preset for owner in reversed(cls.__mro__) for preset in vars(owner).get("PRESETS", ())]

    @classmethod
    def implied(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the presets say about options that are not in `given`."""
        values = {f.name: default_of(f) for f in fields(cls)} | dict(given)
        implied: dict[str, Any] = {}
        for preset in cls.presets():
            if preset.applies(values, given):
                new = {k: copy.copy(v) for k, v in preset.then.items() if k not in given and k in values}
                values |= new
                implied |= new
        return implied

    @classmethod
    def in_our_words(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """The content of a configuration file by these options' names; some classes know files of an original."""
        return content

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> "Any":
        """The options a checkpoint or run.json holds; names of other versions are left out."""
        cls = cls.saved_variant(saved)
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in saved.items() if name in known})


# -- checking -------------------------------------------------------------------------------------------------------


def check_values(args: Any) -> None:
    """Type, choices, range and length of every option."""
    for f in fields(args):
        value = getattr(args, f.name)
        if f.metadata.get("nargs"):
            one = isinstance(value, (int, float)) or (isinstance(value, str) and f.metadata["options"] is not None)
            if one or isinstance(value, tuple):  # one of them stands for a list of it, as on the command line
                value = list(value) if isinstance(value, tuple) else [value]
                setattr(args, f.name, value)
            if not isinstance(value, list):
                raise OptionError(f"{f.name}={value!r}: takes a list")
            length = f.metadata["length"]
            if length is not None and value and len(value) != length:
                raise OptionError(f"{f.name}={shown(value)}: takes {length} values, got {len(value)}")
        elif isinstance(value, list):
            raise OptionError(f"{f.name}={value!r}: takes one value")
        for one in value if isinstance(value, list) else [value]:
            checked = _check_value(f, one)
            if checked is not one and not isinstance(value, list):
                setattr(args, f.name, checked)


def refuse_without_effect(args: Any, given: Mapping[str, Any]) -> None:
    """Refuse what was given, and is not its default anyway, where the options it needs are not set so."""
    for f in fields(args):
        unmet = {}
        for names, wanted in f.metadata["needs"].items():
            known = [name for name in names.split("|") if hasattr(args, name)]
            if known and not any(_met(getattr(args, name), wanted) for name in known):
                unmet[names] = wanted
        if f.name not in given or not unmet:
            continue
        rest = {name: value for name, value in given.items() if name != f.name}
        if given[f.name] != type(args).implied(rest).get(f.name, default_of(f)):
            need = " and ".join(f"{name}={_wish(wanted)}" for name, wanted in unmet.items())
            raise OptionError(f"{f.name}={shown(given[f.name])}: has no effect without {need}")


def _met(value: Any, wanted: Any) -> bool:
    if wanted is ANY:
        return value not in (None, False, [], "") and value != 0
    if isinstance(value, list) and not isinstance(wanted, list):
        return any(_met(one, wanted) for one in value)
    return value in wanted if isinstance(wanted, tuple) else bool(value == wanted)


def _wish(wanted: Any) -> str:
    if wanted is ANY:
        return "..."
    return "|".join(map(str, wanted)) if isinstance(wanted, tuple) else str(wanted)


def _check_value(f: "Field[Any]", value: Any) -> Any:
    """One value, with a whole number made a float where a float is due."""
    kinds, optional = kinds_of(f.type)
    if value is None:
        if not optional:
            raise OptionError(f"{f.name}=None: takes {words_for(kinds)}")
        return None
    if isinstance(value, Path) and str in kinds:
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds:
        value = float(value) if abs(value) <= LARGEST_INT else math.inf
    if kinds and not (isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))):
        raise OptionError(f"{f.name}={value!r}: takes {words_for(kinds)}")
    options, low, high = (f.metadata[name] for name in ("options", "at_least", "at_most"))
    if options is not None and value not in options:
        close = difflib.get_close_matches(str(value), map(str, options), n=1, cutoff=0.5)
        remedy = f"; did you mean {close[0]}?" if close else ""
        raise OptionError(f"{f.name}={value}: choose from {', '.join(map(str, options))}{remedy}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise OptionError(f"{f.name}={value}: must be a finite number")
        if isinstance(value, int) and abs(value) > LARGEST_INT:
            raise OptionError(f"{f.name}={value}: too large")
        if low is not None and value < low:
            raise OptionError(f"{f.name}={value}: must be at least {low}")
        if high is not None and value > high:
            raise OptionError(f"{f.name}={value}: must be at most {high}")
    return value


def kinds_of(annotation: Any) -> tuple[tuple[type, ...], bool]:
    """Plain types that an annotation admits (of a list: its elements), and whether None is one of them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return kinds_of(get_args(annotation)[0])
    if origin is list:
        return kinds_of(get_args(annotation)[0])
    if origin is Union or type(annotation).__name__ == "UnionType":
        parts = [kinds_of(part) for part in get_args(annotation) if part is not type(None)]
        return tuple(kind for kinds, _ in parts for kind in kinds), type(None) in get_args(annotation)
    return ((annotation,) if annotation in (bool, int, float, str) else ()), False


def words_for(kinds: Iterable[type]) -> str:
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
    return " or ".join(names[kind] for kind in kinds)


def shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def to_bool(text: str) -> bool:
    word = text.strip().lower()
    if word not in TRUE | FALSE:
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return word in TRUE


def _help_text(text: str, default: Any, metadata: Mapping[str, Any]) -> str:
    aliases, options = metadata["aliases"], metadata["options"]
    one_of = f"; one of {', '.join(map(str, options))}" if options else ""
    also = f"; also {', '.join(aliases)}" if aliases else ""
    return f"{text} (default: {shown(default)}{one_of}{also})".replace("%", "%%")


def dashed(name: str) -> str:
    head, body = re.match(r"(-*)(.*)", name).groups()  # type: ignore[union-attr]
    return head + body.replace("_", "-")


# -- using ---------------------------------------------------------------------------------------------------------


def configure(cls: type[A], config: A | None, options: Mapping[str, Any]) -> A:
    """The configuration of a module made as ``Module(config)`` or as ``Module(option=value, ...)``."""
    if config is not None and options:
        raise OptionError(f"give a configuration or keyword options, not both (got {', '.join(options)} beside it)")
    return cls(**options) if config is None else config


def given_options(args: Any) -> frozenset[str]:
    """Names of the options that were given: on the command line, in a configuration file or by keyword."""
    found: frozenset[str] = getattr(args, "_given", frozenset())
    return found


def note_given(args: Any, names: Iterable[str]) -> None:
    """Keep for `given_options` that these were given."""
    args._given = frozenset(names)


def to_plain(args: Any) -> dict[str, Any]:
    """The options as JSON-ready values."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(args).items()}


def result_options(args: Any) -> dict[str, Any]:
    """Those of `to_plain` that have a part in what comes out of a run."""
    plain = to_plain(args)
    return {f.name: plain[f.name] for f in fields(args) if f.metadata["result"]}
