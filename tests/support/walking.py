"""Does an option of a program act? The program is run with it and without it, and what both leave is compared."""

import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import Field, dataclass, field, fields
from io import StringIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

from anomaly_lib.config import default_of
from tests.support.acting import TIMES, another_value, only_one
from tests.support.programs import Program

CLOCK = r"\d{8}_\d{6}|tfevents\S+"  # in names: when an HDMAP experiment began, which process wrote events
Values = Mapping[str, Any]
"""Options by name; None = not given."""


@dataclass(frozen=True)
class Walk:
    """How the options of a program are tried."""

    base: Values  # what every run is given
    tries: Mapping[str, tuple[Values, Any]] = field(default_factory=dict)  # option -> (options beside it, its value)
    elsewhere: Mapping[str, str] = field(default_factory=dict)  # option -> why its effect is no part of the outcome
    inherited: type | None = None  # options that this class declares are walked with the system that they are handed to
    files: Mapping[str, Path] = field(default_factory=dict)  # copied into the folder of each run, which it may change


@dataclass
class Outcome:
    """What a run of a program leaves."""

    code: int
    said: str
    errors: str
    content: dict[str, str]  # file -> what is in it; "" = what was said


def words_of(values: Values) -> list[str]:
    """The command line of these options."""
    words: list[str] = []
    for name, value in values.items():
        if value is None:
            continue
        words.append("--" + name.replace("_", "-"))
        words += [str(one) for one in value] if isinstance(value, list) else [str(value)]
    return words


def outcome_of(program: Program, values: Values, folder: Path, files: Mapping[str, Path]) -> Outcome:
    """Run `program` in `folder`."""
    folder.mkdir(parents=True)
    for name, source in files.items():
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / name)
    said, errors = StringIO(), StringIO()
    with chdir(folder), redirect_stdout(said), redirect_stderr(errors):
        code = program.main(words_of(values))
    files_left = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    content = {_stable(str(path.relative_to(folder)), folder): _content(path, folder) for path in files_left}
    content[""] = _stable(said.getvalue(), folder)
    return Outcome(code, said.getvalue(), errors.getvalue(), content)


@contextmanager
def chdir(folder: Path) -> Iterator[None]:
    """Paths without a root lie in `folder`."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _content(path: Path, folder: Path) -> str:
    data = path.read_bytes()
    try:
        return _stable(data.decode("utf-8"), folder)
    except UnicodeDecodeError:
        return hashlib.sha256(data).hexdigest()


def _stable(text: str, folder: Path) -> str:
    """Without times and checksums; the folder of the run is "."."""
    return re.sub(f"{CLOCK}|{TIMES}", "", text.replace(str(folder), "."))


Line = tuple[str, int]
"""A line of a file."""


def differs(left: Outcome, right: Outcome, unstable: Collection[Line]) -> bool:
    """Did another thing come out? Lines that change from run to run count by their being there."""
    if left.code != right.code or left.content.keys() != right.content.keys():
        return True
    return any(line not in unstable for line in _other_lines(left, right))


def unstable_between(left: Outcome, right: Outcome) -> set[Line]:
    """Lines (times, checksums of times) that two equal runs do not leave alike."""
    assert left.code == right.code
    assert left.content.keys() == right.content.keys(), left.content.keys() ^ right.content.keys()
    return set(_other_lines(left, right))


def _other_lines(left: Outcome, right: Outcome) -> Iterator[Line]:
    for name in left.content:
        lines, others = left.content[name].splitlines(), right.content[name].splitlines()
        for number, pair in enumerate(zip_longest(lines, others)):
            if pair[0] != pair[1]:
                yield name, number


def silent_options(program: Program, walk: Walk, root: Path) -> list[str]:
    """Options of `program` that neither act nor are refused nor announced, as ``name=value``."""
    bases: dict[str, tuple[Outcome, set[Line]]] = {}

    def base(values: Values) -> tuple[Outcome, set[Line]]:
        key = repr(sorted(values.items(), key=str))
        if key not in bases:
            one, two = (outcome_of(program, values, root / f"base{len(bases)}{part}", walk.files) for part in "ab")
            assert one.code != 2 or None in values.values(), one.errors  # what stands for others may be missing
            bases[key] = (one, unstable_between(one, two))
        return bases[key]

    chosen = type(program.Args(**walk.base)) if program.Args.CHOOSES else program.Args  # options may go with a choice
    silent = []
    for f in fields(chosen):
        handed_on = _declared_by(walk.inherited, f) and f.name not in walk.tries
        if f.name in walk.elsewhere or handed_on or only_one(f):
            continue
        beside, value = walk.tries.get(f.name, ({}, None))
        usual = {**walk.base, **beside}
        if value is None:
            value = another_value(f, usual.get(f.name, default_of(f)))
        found = outcome_of(program, {**usual, f.name: value}, root / f.name, walk.files)
        if found.code == 2:
            assert_names_option(f, value, found.errors)
        elif not (f"{f.name}=" in found.said and "no meaning" in found.said) and not differs(found, *base(usual)):
            silent.append(f"{f.name}={value}")
    return silent


def _declared_by(owner: type | None, f: "Field[Any]") -> bool:
    return owner is not None and getattr(owner, "__dataclass_fields__", {}).get(f.name) is f


def assert_names_option(f: "Field[Any]", value: Any, message: str) -> None:
    """A refusal is one line that names the option or its value."""
    assert message.count("\n") == 1, message
    tried = [str(one) for one in (value if isinstance(value, list) else [value])]
    flag = f.name.replace("_", "-")
    assert any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message, re.IGNORECASE) for word in [flag, *tried]), (
        f.name,
        value,
        message,
    )
