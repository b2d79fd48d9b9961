"""Options: declared once in a dataclass, read alike from argv, from a JSON file and from keyword arguments.

A class derived from `Options` declares every option with ``arg(default, help)``. ``parse(Args)`` serves every way users
type them: ``--fusion-mode x``, ``--fusion_mode x``, ``--fusion-mode=x``, ``--use-x``, ``--use-x False``,
``--no-use-x``, ``--layers 2 3``, ``--layers "2,3"``, aliases of the originals, ``--config FILE.json``,
``--print-config``.
``Args(fusion_mode="x")`` in a notebook means the same as ``--fusion-mode x``: presets fill what is not given, and every
value is checked where the object is made.

Order of precedence: default < presets of the class, in their order < ``--config FILE`` < flags.
Files that declare Args must not use ``from __future__ import annotations``: the package reads real types.
"""

import argparse
import copy
import difflib
import errno
import gc
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn, TypeVar, Union, cast, get_args, get_origin

import argparse_dataclass

from anomaly_lib.errors import OptionError, TrainingFailure, UserError
from anomaly_lib.files import read_json
from anomaly_lib.interrupt import stop_signals

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
    choices: Sequence[Any] | None = None,
    type: Callable[[str], Any] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    length: int | None = None,
    needs: Mapping[str, Any] | None = None,
) -> Any:
    """One option. `aliases` are the originals' other spellings; a ``None`` default needs its `type` said.

    `length`: how many values a list takes. `needs`: what other options must be for this one to have an effect (a tuple
    of values that all do, or `ANY` for anything but None, False and nothing); given without that, it is refused. What
    it needs may be an option that only a derived class has, e.g. which of several models is trained.
    """
    if default is None and type is None:
        raise TypeError("an option whose default is None must say its type")
    metadata: dict[str, Any] = {
        "raw_help": help,
        "aliases": [_dashed(alias if alias.startswith("-") else f"--{alias}") for alias in aliases],
        "at_least": at_least,
        "at_most": at_most,
        "options": list(choices) if choices is not None else None,
        "length": length,
        "needs": dict(needs or {}),
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
    choices: Sequence[Any] | None = None,
    needs: Mapping[str, Any] | None = None,
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
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        for name in given:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                remedy = f"; did you mean {close[0]}?" if close else ""
                raise OptionError(f"{cls.__name__} has no option {name!r}{remedy}")
        args = cast(A, type.__call__(cls, **(cls.implied(given) | given)))  # type: ignore[attr-defined]
        refuse_without_effect(args, given)
        return args


@dataclass
class Options(metaclass=_FilledFromPresets):
    """Base of every options class: presets fill what is not given, then each value and combination is checked."""

    PRESETS: ClassVar[Sequence[Preset]] = ()
    """Presets of this class; those of its bases come before them, so that a derived class has the last word."""

    def __post_init__(self) -> None:
        check_values(self)
        for owner in reversed(type(self).__mro__):
            if "check" in vars(owner):
                vars(owner)["check"](self)

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
    def from_saved(cls, saved: Mapping[str, Any]) -> "Any":
        """The options a checkpoint or run.json holds; names of other versions are left out."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in saved.items() if name in known})


# -- checking -------------------------------------------------------------------------------------------------------


def check_values(args: Any) -> None:
    """Type, choices, range and length of every option."""
    for f in fields(args):
        value = getattr(args, f.name)
        if f.metadata.get("nargs"):
            if isinstance(value, (tuple, int, float)):  # one number stands for a list of it, as on the command line
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
        needs = {name: wanted for name, wanted in f.metadata["needs"].items() if hasattr(args, name)}
        unmet = {name: wanted for name, wanted in needs.items() if not _met(getattr(args, name), wanted)}
        if f.name not in given or not unmet:
            continue
        rest = {name: value for name, value in given.items() if name != f.name}
        if given[f.name] != type(args).implied(rest).get(f.name, default_of(f)):
            need = " and ".join(f"{name}={_wish(wanted)}" for name, wanted in unmet.items())
            raise OptionError(f"{f.name}={shown(given[f.name])}: has no effect without {need}")


def _met(value: Any, wanted: Any) -> bool:
    if wanted is ANY:
        return value not in (None, False, [], "") and value != 0
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


# -- spelling -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Original:
    """A spelling of an original program that is no option here: what it says, in our words."""

    means: Callable[[str], Sequence[str]]  # its value -> words of argv here; () = accepted, without meaning here
    takes_value: bool = True
    needs: str = ""  # programs that have this option know the spelling; "" = every program


def _device_of(gpu: str) -> list[str]:
    return ["--device", "cpu" if gpu.strip() in ("-1", "cpu") else f"cuda:{gpu}"]


ORIGINALS: dict[str, Original] = {
    "--gpu-id": Original(_device_of, needs="device"),
    "--use-cpu": Original(lambda text: ["--device", "cpu"] if to_bool(text) else [], takes_value=False, needs="device"),
    "--mixed-precision": Original(
        lambda text: ["--precision", "bf16"] if to_bool(text) else [], takes_value=False, needs="precision"
    ),
}
"""Spellings of the originals and what they mean here. A program that has an option of that name keeps it."""


def translate_originals(argv: Sequence[str], cls: Any) -> list[str]:
    """argv with spellings of `ORIGINALS` replaced by ours."""
    own = {_flag(f) for f in fields(cls)} | {alias for f in fields(cls) for alias in f.metadata["aliases"]}
    names = {f.name for f in fields(cls)}
    known = {
        name: one for name, one in ORIGINALS.items() if name not in own and (not one.needs or one.needs in names)
    } | {name: one for name, one in getattr(cls, "ORIGINALS", {}).items() if name not in own}
    out: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        original = known.get(_dashed(name)) if _is_option(word) else None
        if original is None:
            out.append(word)
            continue
        if not equals and (original.takes_value or (words and words[0].lower() in TRUE | FALSE)):
            value = words.pop(0) if words else ""
        try:
            out += original.means(value if value or original.takes_value else "True")
        except argparse.ArgumentTypeError as error:
            raise UserError(f"{name}: {error}") from None
    return out


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


def _dashed(name: str) -> str:
    head, body = re.match(r"(-*)(.*)", name).groups()  # type: ignore[union-attr]
    return head + body.replace("_", "-")


def _flag(f: "Field[Any]") -> str:
    return "--" + f.name.replace("_", "-")


def _is_option(token: str) -> bool:
    return bool(re.match(r"--?[A-Za-z]", token)) and not re.fullmatch(r"-(inf|nan)", token.lower())  # "-0.5" is a value


def as_flags(message: str, cls: Any) -> str:
    """A message that speaks of arguments (``epochs=-1: ...``, ``give data_path=``) in the flags of a command line."""
    names = {f.name for f in fields(cls)}
    return re.sub(
        r"(?<![\w.\"'/=-])([a-z][a-z0-9_]*)=(?!=)(\s*)",
        lambda m: "--" + m[1].replace("_", "-") + " " if m[1] in names else m[0],
        message,
    )


def _words(text: str, *, phrases: bool = False) -> list[str]:
    """Entries of a list in one token; in a list of phrases ("damaged {}") only commas separate."""
    return [word for word in re.split(r"\s*,\s*" if phrases else r"[,\s]+", text.strip("[] ")) if word]


def normalise(argv: Sequence[str], cls: Any) -> list[str]:
    """Bring option names to their one declared spelling; values are never touched, except lists split at commas."""
    known = {_flag(f): f for f in fields(cls)}
    canonical = {name: name for name in known} | {
        alias: _flag(f) for f in fields(cls) for alias in f.metadata["aliases"]
    }
    switches = {name for name, f in known.items() if f.type == Switch}
    lists = {name: f.metadata["type"] is str for name, f in known.items() if f.metadata.get("nargs")}
    out: list[str] = []
    in_list = phrases = False
    for i, token in enumerate(argv):
        if not _is_option(token):
            out += _words(token, phrases=phrases) if in_list else [token]
            continue
        name, equals, value = token.partition("=")
        name = _dashed(name)
        positive = canonical.get("--" + name[5:]) if name.startswith("--no-") else None
        name = canonical.get(name, name)
        in_list, phrases = name in lists, lists.get(name, False)
        if equals:
            out += [name, *_words(value, phrases=phrases)] if in_list else [f"{name}={value}"]
            in_list = False
        elif name in switches:
            following = argv[i + 1].lower() if i + 1 < len(argv) else ""
            # a bare switch means True; anything that is no option after it is left for argparse to judge
            out += [name] if following and not _is_option(following) else [name, "True"]
        elif name not in known and positive in switches:
            out += [cast(str, positive), "False"]
        else:
            out.append(name)
    return out


# -- parsing --------------------------------------------------------------------------------------------------------


class _Parser(argparse_dataclass.ArgumentParser):  # type: ignore[misc]
    """One line on stderr instead of argparse's usage screen; --help in sections by the class that declares them."""

    def __init__(self, cls: Any, **settings: Any) -> None:
        super().__init__(cls, allow_abbrev=False, **settings)
        sections: dict[str, argparse._ArgumentGroup] = {}
        for action in [a for a in self._actions if a.dest != "help"]:
            owner = next(c for c in cls.__mro__[::-1] if action.dest in getattr(c, "__dataclass_fields__", {}))
            title = (owner.__doc__ or owner.__name__).strip().splitlines()[0].rstrip(".")
            group = (
                sections.setdefault(title, self.add_argument_group(title)) if title not in sections else sections[title]
            )
            self._optionals._group_actions.remove(action)
            group._group_actions.append(action)
            # What is not given is filled by the class itself, from its presets and defaults.
            action.default, action.required = argparse.SUPPRESS, False

    def given(self, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Values of the options that stand in `words`, and the words nobody knows."""
        namespace, extra = argparse.ArgumentParser.parse_known_args(self, list(words))
        return vars(namespace), extra

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (\S+):", r"\1:", message)
        self.exit(2, f"{self.prog}: {message}\n")
        raise AssertionError("unreachable")


def _unknown(token: str, cls: Any) -> str:
    if not _is_option(token):
        return f"unexpected argument {token!r} (every option is named; --help lists them)"
    lowered = {name.lower(): _flag(f) for f in fields(cls) for name in [*f.metadata["aliases"], _flag(f)]}
    close = difflib.get_close_matches(token.lower(), lowered, n=1, cutoff=0.5)
    return f"unknown option {token}" + (f"; did you mean {lowered[close[0]]}?" if close else " (--help lists them)")


def _given_in_file(path: str, cls: Any) -> tuple[list[str], dict[str, Any]]:
    """A JSON file of options as argv, and the options it sets to null. Groups (``{"data": {...}}``) are flattened."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object of options, found {type(content).__name__}")
    by_flag = {name: f for f in fields(cls) for name in [_flag(f), *f.metadata["aliases"]]}
    argv: list[str] = []
    nulls: dict[str, Any] = {}
    stack = list(content.items())
    while stack:
        key, value = stack.pop(0)
        if isinstance(value, dict):
            stack = list(value.items()) + stack
            continue
        flag = _dashed(f"--{key}")
        f = by_flag.get(flag)
        if f is None:
            raise UserError(f"{path}: {_unknown(flag, cls)}")
        if value is None or value == []:
            if kinds_of(f.type)[1] or value == []:
                nulls[f.name] = value  # null says "none"; where an option has no such value it says nothing
        else:
            argv += [flag, *(map(str, value) if isinstance(value, list) else [str(value)])]
    return argv, nulls


def parse(
    cls: type[A], argv: Sequence[str] | None = None, *, prog: str | None = None, description: str | None = None
) -> A:
    """Build `cls` from the command line. Leaves with exit code 2 and one line on stderr when that is impossible."""
    _check_declaration(cls)
    parser = _Parser(
        cls,
        prog=prog,
        description=description or (cls.__doc__ or "").strip(),
        epilog=preset_help(cls),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words = list(sys.argv[1:] if argv is None else argv)
    # Read before everything else (`before` below); the real parser lists them in --help only.
    files = parser.add_argument_group("Configuration files")
    files.add_argument("--config", metavar="FILE.json", default=argparse.SUPPRESS, help="read options; flags win")
    files.add_argument(
        "--print-config", action="store_true", default=argparse.SUPPRESS, help="show them as JSON, leave"
    )
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog=parser.prog)
    before.add_argument("--config")
    before.add_argument("--print-config", "--print_config", action="store_true")
    try:
        own, words = before.parse_known_args(words)
        from_file, nulls = _given_in_file(own.config, cls) if own.config else ([], {})
        given, extra = parser.given(normalise(translate_originals([*from_file, *words], cls), cls))
        if extra:
            parser.error(_unknown(extra[0], cls))
        args = cls(**{**nulls, **given})
    except ValueError as error:
        parser.error(as_flags(str(error), cls))
    if own.print_config:
        sys.stdout.write(json.dumps(to_plain(args), indent=2) + "\n")
        parser.exit(0)
    return args


def preset_help(cls: Any) -> str:
    """What each preset sets, for --help."""
    lines = []
    for preset in cls.presets() if issubclass(cls, Options) else ():
        when = ", ".join(
            f"--{name.replace('_', '-')} {'|'.join(map(str, value)) if isinstance(value, tuple) else value}"
            for name, value in preset.when.items()
        )
        then = " ".join(f"--{name.replace('_', '-')} {shown(value)}" for name, value in preset.then.items())
        lines.append(f"  {when}:\n      {then}")
    return "\n".join(["presets (what you give yourself wins):", *lines]) if lines else ""


def _check_declaration(cls: Any) -> None:
    """The traps of argparse_dataclass, turned into a message for the programmer."""
    for f in fields(cls):
        if "raw_help" not in f.metadata:
            raise TypeError(f"{cls.__name__}.{f.name}: declare it with arg(default, help)")
        if isinstance(f.default, bool) and f.type != Switch:
            raise TypeError(f"{cls.__name__}.{f.name}: annotate it as Switch, not {f.type}")
        if isinstance(f.type, str):
            raise TypeError(f"{cls.__name__}: remove 'from __future__ import annotations' from its file")


def to_plain(args: Any) -> dict[str, Any]:
    """The options as JSON-ready values."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(args).items()}


def option_strings(cls: Any) -> set[str]:
    """Every spelling `cls` answers to, for the frozen-CLI test."""
    return {_flag(f) for f in fields(cls)} | {alias for f in fields(cls) for alias in f.metadata["aliases"]}


def command(
    cls: type[A], body: Callable[[A], object], argv: Sequence[str] | None = None, *, prog: str, description: str
) -> int:
    """Run a script's body and turn its end into an exit code: 0 done, 1 failure, 2 wrong input, 130 interrupted.

    SIGINT and SIGTERM raise KeyboardInterrupt from the first line on, whatever is being done.
    """
    try:
        with stop_signals():
            outcome = body(parse(cls, argv, prog=prog, description=description))
    except SystemExit as leaving:  # argparse: --help, --print-config, errors
        return leaving.code if isinstance(leaving.code, int) else 0
    except UserError as error:
        sys.stderr.write(f"{prog}: {as_flags(str(error), cls)}\n")
        return 2
    except TrainingFailure as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return 1
    except BrokenPipeError:  # the reader of our output has gone (| head)
        sys.stderr.close()
        return 1
    except OSError as error:
        sys.stderr.write(f"{prog}: {as_flags(in_words(error), cls)}\n")
        return 2
    except KeyboardInterrupt as error:
        sys.stderr.write(f"{prog}: interrupted{f' ({error})' if str(error) else ''}\n")
        gc.freeze()  # or the interpreter would search all of torch for garbage, for seconds, before it ends
        return 130
    return outcome if isinstance(outcome, int) and not isinstance(outcome, bool) else 0


REMEDIES = {
    errno.ENOSPC: "free some space and run the same command again, which goes on",
    errno.EDQUOT: "free some of your quota and run the same command again, which goes on",
    errno.EACCES: "give a place you may use, e.g. another output_dir=",
    errno.EPERM: "give a place you may use, e.g. another output_dir=",
    errno.EROFS: "it is mounted read-only: give another output_dir=",
    errno.ENOTDIR: "a file stands where a folder is needed: give another output_dir=",
    errno.EEXIST: "a file stands where a folder is needed: give another output_dir=",
    errno.EISDIR: "a folder stands where a file is needed: give another name",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOENT: "was it deleted or moved while it was in use? run the same command again",
    errno.ELOOP: "a link points to itself: mend or remove it",
    errno.EMFILE: "too many open files: raise `ulimit -n`",
}


def in_words(error: OSError) -> str:
    """One line for what the operating system refused: where, what, and the remedy."""
    where = f"{error.filename}: " if error.filename else ""
    remedy = REMEDIES.get(error.errno or 0, "")
    return f"{where}{error.strerror or error}" + (f" ({remedy})" if remedy else "")


def configure(cls: type[A], config: A | None, options: Mapping[str, Any]) -> A:
    """The configuration of a module made as ``Module(config)`` or as ``Module(option=value, ...)``."""
    if config is not None and options:
        raise OptionError(f"give a configuration or keyword options, not both (got {', '.join(options)} beside it)")
    return cls(**options) if config is None else config
