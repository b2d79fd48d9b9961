"""From a dataclass to a command line. The only file that knows argparse_dataclass.

An Args dataclass declares every option once, with ``arg(default, help)``; ``parse(Args)`` serves every way users type
them: ``--fusion-mode x``, ``--fusion_mode x``, ``--fusion-mode=x``, ``--use-x``, ``--use-x False``, ``--no-use-x``,
``--layers 2 3``, ``--layers "2,3"``, aliases of the originals, ``--config FILE.json`` (flags win), ``--print-config``.

argv is normalised before argparse sees it, so that one declared spelling is enough (see `normalise`).
Files that declare Args must not use ``from __future__ import annotations``: the package reads real types.
"""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, asdict, field, fields
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, cast

import argparse_dataclass

from anomaly_lib.errors import TrainingFailure, UserError
from anomaly_lib.files import read_json

Switch = Annotated[bool, "takes an optional value: --x, --x True, --x False, --no-x"]
TRUE = frozenset({"true", "yes", "on", "1", "t", "y"})
FALSE = frozenset({"false", "no", "off", "0", "f", "n"})
A = TypeVar("A")


def to_bool(text: str) -> bool:
    word = text.strip().lower()
    if word not in TRUE | FALSE:
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return word in TRUE


def arg(
    default: Any,
    help: str,
    *,
    aliases: Sequence[str] = (),
    choices: Sequence[Any] | None = None,
    type: Callable[[str], Any] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:
    """One option. `aliases` are the originals' other spellings; a ``None`` default needs its `type` said."""
    if default is None and type is None:
        raise TypeError("an option whose default is None must say its type")
    metadata: dict[str, Any] = {
        "raw_help": help,
        "aliases": [_dashed(alias if alias.startswith("-") else f"--{alias}") for alias in aliases],
        "at_least": at_least,
        "at_most": at_most,
        "choices": list(choices) if choices is not None else None,
    }
    metadata["help"] = _help_text(help, default, metadata["aliases"])
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
) -> Any:
    """The option `name` of a shared group with another default, help, choices or more aliases for one system."""
    base: Field[Any] = next(f for f in fields(owner) if f.name == name)
    meta = base.metadata
    kept = base.default_factory() if base.default_factory is not MISSING else base.default
    return arg(
        kept if default is MISSING else default,
        help or meta["raw_help"],
        aliases=[*meta["aliases"], *aliases],
        choices=choices or meta["choices"],
        type=None if isinstance(kept, bool) else meta.get("type"),
        at_least=meta["at_least"],
        at_most=meta["at_most"],
    )


def _help_text(text: str, default: Any, aliases: Sequence[str]) -> str:
    shown = " ".join(map(str, default)) if isinstance(default, list) else default
    also = f"; also {', '.join(aliases)}" if aliases else ""
    return f"{text} (default: {shown}{also})".replace("%", "%%")


def _dashed(name: str) -> str:
    head, body = re.match(r"(-*)(.*)", name).groups()  # type: ignore[union-attr]
    return head + body.replace("_", "-")


def _flag(f: "Field[Any]") -> str:
    return "--" + f.name.replace("_", "-")


def _is_option(token: str) -> bool:
    return bool(re.match(r"--?[A-Za-z]", token))  # "-0.5" is a value


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


def _argv_from_file(path: str, cls: Any) -> list[str]:
    """A JSON file of options as argv. Groups (``{"data": {...}}``) are flattened; null means default."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object of options, found {type(content).__name__}")
    names = {_flag(f) for f in fields(cls)} | {alias for f in fields(cls) for alias in f.metadata["aliases"]}
    argv: list[str] = []
    stack = list(content.items())
    while stack:
        key, value = stack.pop(0)
        if isinstance(value, dict):
            stack = list(value.items()) + stack
            continue
        flag = _dashed(f"--{key}")
        if flag not in names:
            raise UserError(f"{path}: {_unknown(flag, cls)}")
        if value is not None:
            argv += [flag, *(map(str, value) if isinstance(value, list) else [str(value)])]
    return argv


def parse(
    cls: type[A], argv: Sequence[str] | None = None, *, prog: str | None = None, description: str | None = None
) -> A:
    """Build `cls` from the command line. Leaves with exit code 2 and one line on stderr when that is impossible."""
    _check_declaration(cls)
    parser = _Parser(cls, prog=prog, description=description or (cls.__doc__ or "").strip())
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
        from_file = _argv_from_file(own.config, cls) if own.config else []
        args, extra = parser.parse_known_args(normalise([*from_file, *words], cls))
        if extra:
            parser.error(_unknown(extra[0], cls))
        check_ranges(args)
    except (UserError, ValueError) as error:
        parser.error(str(error))
    if own.print_config:
        sys.stdout.write(json.dumps(to_plain(args), indent=2) + "\n")
        parser.exit(0)
    return cast(A, args)


def check_ranges(args: Any) -> None:
    """`at_least` / `at_most` of every numeric option, naming the flag."""
    for f in fields(args):
        values = getattr(args, f.name)
        for value in values if isinstance(values, list) else [values]:
            low, high = f.metadata["at_least"], f.metadata["at_most"]
            if low is not None and value is not None and value < low:
                raise UserError(f"{_flag(f)} must be at least {low}, got {value}")
            if high is not None and value is not None and value > high:
                raise UserError(f"{_flag(f)} must be at most {high}, got {value}")


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
    """Run a script's body and turn its end into an exit code: 0 done, 1 failure, 2 wrong input, 130 interrupted."""
    try:
        outcome = body(parse(cls, argv, prog=prog, description=description))
    except SystemExit as leaving:  # argparse: --help, --print-config, errors
        return leaving.code if isinstance(leaving.code, int) else 0
    except (UserError, TrainingFailure) as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt as error:
        sys.stderr.write(f"{prog}: interrupted{f' ({error})' if str(error) else ''}\n")
        return 130
    return outcome if isinstance(outcome, int) and not isinstance(outcome, bool) else 0
