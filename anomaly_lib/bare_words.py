"""Words of a command line that need no option name: ``demo DIR``, ``predict IMAGE ...``."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any

from anomaly_lib.command_line import normalise, translate_originals, variant_of
from anomaly_lib.config import FALSE, TRUE, Switch


def split_bare_words(argv: Sequence[str], cls: Any, *, values_of: str = "") -> tuple[list[str], list[str]]:
    """(options, words): the words that no option of `cls` takes, as they are (blanks and commas included).

    What is given to the option `values_of` by its name counts as such a word too.
    """
    with suppress(ValueError):  # a wrong model: the parser says so
        cls = variant_of(argv, cls)
    own = {f"--{f.name.replace('_', '-')}": f for f in fields(cls)}
    switches = {flag for flag, f in own.items() if f.type == Switch}
    lists = {flag for flag, f in own.items() if f.metadata.get("nargs")}
    singles = own.keys() - switches - lists | {"--config"}
    named = f"--{values_of.replace('_', '-')}"
    options: list[str] = []
    words: list[str] = []
    taker = ""  # the option that takes the next word
    for token in translate_originals(argv, cls):
        name, equals, value = token.partition("=")
        if taker not in singles and re.match(r"--?[A-Za-z]", token):
            flag = normalise([name], cls)[0]
            taker = "" if equals or flag == named or name.startswith("--no-") else flag
            if flag != named:
                options.append(token)
            elif equals:
                words.append(value)
        elif taker in switches and token.lower() in TRUE | FALSE:
            options[-1] += f"={token}"
            taker = ""
        elif taker in singles or taker in lists:
            options.append(token)
            taker = "" if taker in singles else taker
        else:
            words.append(token)
            taker = ""
    return options, words


def name_bare_words(argv: Sequence[str], cls: Any, names: Sequence[str]) -> list[str]:
    """`argv` in which bare words, wherever they stand, are the values of the options `names`, in their order.

    Words too many stay bare, so that the parser refuses them.
    """
    options, words = split_bare_words(argv, cls)
    named = [f"--{name.replace('_', '-')}={word}" for name, word in zip(names, words, strict=False)]
    return [*options, *named, *words[len(names) :]]
