"""From argv to options, and from a script's body to an exit code. The only file that knows argparse_dataclass.

``parse(Args)`` serves every way users type options: ``--fusion-mode x``, ``--fusion_mode x``, ``--fusion-mode=x``,
``--use-x``, ``--use-x False``, ``--no-use-x``, ``--layers 2 3``, ``--layers "2,3"``, aliases and spellings of the
originals, ``--config FILE.json`` (flags win), ``--print-config``. argv is normalised before argparse sees it, so that
one declared spelling is enough.
"""

import argparse
import difflib
import errno
import gc
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import argparse_dataclass

from anomaly_lib.config import FALSE, TRUE, Options, Switch, dashed, kinds_of, shown, to_bool, to_plain
from anomaly_lib.errors import OptionError, TrainingFailure, UserError
from anomaly_lib.files import read_json
from anomaly_lib.interrupt import stop_signals

A = TypeVar("A")
PROGRAM = "anomaly-lib" if Path(sys.argv[0]).name.startswith("anomaly-lib") else "python -m anomaly_lib"
"""What the user types before a command; messages that name the next command begin with it."""


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
        original = known.get(dashed(name)) if _is_option(word) else None
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


def _flag(f: "Field[Any]") -> str:
    return "--" + f.name.replace("_", "-")


def _is_option(token: str) -> bool:
    return bool(re.match(r"--?[A-Za-z]", token)) and not re.fullmatch(r"-(inf|nan)", token.lower())  # "-0.5" is a value


def as_flags(message: str, cls: Any) -> str:
    """A message that speaks of arguments (``epochs=-1: ...``, ``give data_path=``) in the flags of a command line."""
    names = {f.name for f in fields(cls)}
    return re.sub(
        r"(?<![\w.\"'/=-])([a-z][a-z0-9_]*)=(?!=)(\s*)(?=(.?))",
        lambda m: "--" + m[1].replace("_", "-") + ("" if m[3] in ",;:)" else " ") if m[1] in names else m[0],
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
        name = dashed(name)
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


def as_word(path: Path | str) -> str:
    """A path as one word of a shell."""
    text = str(path)
    if os.name == "nt":
        return f'"{text}"' if " " in text else text
    return shlex.quote(text)


def _unknown(token: str, cls: Any) -> str:
    if not _is_option(token):
        return f"unexpected argument {token!r} (options have names, see --help; what has blanks stands in quotes)"
    if foreign := cls.foreign(token.lstrip("-").replace("-", "_")):
        return f"{token}: {as_flags(foreign, cls)}"
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
    try:
        content = cls.in_our_words(content)
    except OptionError as error:
        raise UserError(f"{path}: {error}") from None
    for key, value in _flat(content):
        flag = dashed(f"--{key}")
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
    words = list(sys.argv[1:] if argv is None else argv)
    if "config_file" not in {f.name for f in fields(cast(Any, cls))}:
        words = [re.sub(r"^--config[-_]file(?==|$)", "--config", word) for word in words]  # as an original spells it
    try:
        cls = variant_of(words, cls)
    except ValueError as error:
        sys.stderr.write(f"{prog or Path(sys.argv[0]).name}: {as_flags(str(error), cls)}\n")
        raise SystemExit(2) from None
    _check_declaration(cls)
    parser = _Parser(
        cls,
        prog=prog,
        description=description or (cls.__doc__ or "").strip(),
        epilog=preset_help(cls),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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


def variant_of(argv: Sequence[str], cls: type[A]) -> type[A]:
    """The class of options that the words of `argv` choose, e.g. those of one of several models."""
    return cast(type[A], cls.variant(_deciding(argv, cls)))  # type: ignore[attr-defined]


def _deciding(argv: Sequence[str], cls: Any) -> dict[str, Any]:
    """What argv, or the file of its --config, says of the options that decide which others there are."""
    deciding = [f for f in fields(cls) if f.name in cls.CHOOSES]
    if not deciding:
        return {}
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument("--config", nargs="?")
    for f in deciding:
        reader.add_argument(_flag(f), dest=f.name, nargs="?")  # a missing value is the real parser's to refuse
    given = vars(reader.parse_known_args(normalise(translate_originals(argv, cls), cls))[0])
    path = given.pop("config")
    names = {dashed(flag): f.name for f in deciding for flag in [_flag(f), *f.metadata["aliases"]]}
    content = _flat(read_json(path)) if path else []
    from_file = {names[dashed(f"--{key}")]: value for key, value in content if dashed(f"--{key}") in names}
    return from_file | {name: value for name, value in given.items() if value is not None}


def _flat(content: Any) -> list[tuple[str, Any]]:
    """The entries of a JSON object of options, those of its groups among them."""
    pairs = content.items() if isinstance(content, dict) else ()
    return [one for key, value in pairs for one in (_flat(value) if isinstance(value, dict) else [(key, value)])]


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


def option_strings(cls: Any) -> set[str]:
    """Every spelling `cls` answers to, for the frozen-CLI test."""
    return {_flag(f) for f in fields(cls)} | {alias for f in fields(cls) for alias in f.metadata["aliases"]}


# -- running ---------------------------------------------------------------------------------------------------------


def command(
    cls: type[A], body: Callable[[A], object], argv: Sequence[str] | None = None, *, prog: str, description: str
) -> int:
    """Run a script's body and turn its end into an exit code: 0 done, 1 failure, 2 wrong input, 130 interrupted.

    SIGINT and SIGTERM raise KeyboardInterrupt from the first line on, whatever is being done.
    """
    try:
        with stop_signals():
            args = parse(cls, argv, prog=prog, description=description)
            cls = type(args)  # a variant knows more names
            outcome = body(args)
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
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = "give a smaller batch_size=, image_size= or resolution=, or fewer images"
        sys.stderr.write(f"{prog}: {as_flags(f'not enough memory: {remedy}', cls)}\n")
        return 1
    except KeyboardInterrupt as error:
        sys.stderr.write(f"{prog}: interrupted{f' ({error})' if str(error) else ''}\n")
        gc.freeze()  # or the interpreter would search all of torch for garbage, for seconds, before it ends
        return 130
    return outcome if isinstance(outcome, int) and not isinstance(outcome, bool) else 0


def is_out_of_memory(error: BaseException) -> bool:
    """Python's own, PyTorch's on a CPU, CUDA's."""
    said = str(error)
    return isinstance(error, MemoryError) or "allocate memory" in said or "out of memory" in said


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
