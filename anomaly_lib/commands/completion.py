"""`anomaly-lib completion bash|zsh`: a completion script written from the options themselves; it starts no Python."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from anomaly_lib.commands.training import FITTING, TRAINERS, options_of
from anomaly_lib.config import Options, Switch, arg

SHARED = """\
# Completion of anomaly-lib, from the options of version @VERSION@. Keep it where the shell looks:
#   bash: anomaly-lib completion bash > ~/.local/share/bash-completion/completions/anomaly-lib
#   zsh:  anomaly-lib completion zsh > DIR/_anomaly-lib  (DIR: a folder of $fpath)

_anomaly_lib_words() {  # CURRENT, and the words before it: what may stand there, one a line; nothing = a file
  local current="$1" command="" model="" previous="" word
  shift
  for word in "$@"; do
    [ "$word" = "=" ] && continue
    [ "$previous" = --model ] && model="$word"
    case "$word" in --model=*) model="${word#*=}" ;; esac
    if [ -z "$command" ]; then command="$word"; elif [ "$command" = train ]; then command="train-$word"; fi
    previous="$word"
  done
  case "$current" in
    -*) _anomaly_lib_options "$command"; _anomaly_lib_options "$command:$model" ;;
    *) case "$previous" in
      -*) _anomaly_lib_values "$command:$previous" ;;
      *) _anomaly_lib_values "$command:" ;;
    esac ;;
  esac
}
"""
BASH = """
_anomaly_lib() {
  local current="${COMP_WORDS[COMP_CWORD]}" IFS=$'\\n'
  [ "$current" = "=" ] && current=""
  COMPREPLY=($(compgen -W "$(_anomaly_lib_words "$current" "${COMP_WORDS[@]:1:COMP_CWORD-1}")" -- "$current"))
}
complete -o default -F _anomaly_lib anomaly-lib
"""
ZSH = """
_anomaly_lib() {
  local -a found
  found=("${(@f)$(_anomaly_lib_words "${words[CURRENT]}" "${(@)words[2,CURRENT-1]}")}")
  if [[ -n "${found[*]}" ]]; then compadd -a found; else _files; fi
}
if [[ "$funcstack[1]" = _anomaly-lib ]]; then _anomaly_lib "$@"; else compdef _anomaly_lib anomaly-lib; fi
"""
ADAPTERS = {"bash": ("", BASH), "zsh": ("#compdef anomaly-lib\n", ZSH)}


@dataclass
class CompletionArgs(Options):
    """The shell's completion of every command and option."""

    shell: str = arg("bash", "which shell", choices=list(ADAPTERS))


def completion_script(shell: str, options: Mapping[str, type[Options]], bare: Mapping[str, Sequence[str]]) -> str:
    """The script of one shell. `options`: those of each command; `bare`: which of them words without a name fill."""
    from anomaly_lib import __version__

    head, adapter = ADAPTERS[shell]
    commands = dict(options) | {f"train-{name}": options_of(name) for name in TRAINERS}
    listed: dict[str, Sequence[str]] = {}
    values: dict[str, Sequence[str]] = {":": [*options, "train"], "train:": list(TRAINERS)}
    for command, cls in commands.items():
        variants = _variants(cls) | (FITTING if command == "fit" else {})
        flags = {model: _values_of(one) for model, one in variants.items()} or {"": _values_of(cls)}
        shared = set.intersection(*(set(one) for one in flags.values()))
        listed[command] = sorted(shared)
        for model, known in flags.items():
            listed[f"{command}:{model}"] = sorted(set(known) - shared)
            values |= {f"{command}:{flag}": words for flag, words in known.items()}
            values |= {f"{command}:--model": list(flags)} if model else {}
        default = _values_of(cls.variant({}))
        listed[f"{command}:"] = sorted(set(default) - shared)
        for name in bare.get(command, ())[:1]:
            values[f"{command}:"] = default[f"--{name.replace('_', '-')}"]
    functions = [_function("_anomaly_lib_options", listed), _function("_anomaly_lib_values", values)]
    return head + SHARED.replace("@VERSION@", __version__) + "\n" + "\n".join(functions) + adapter


def _variants(cls: type[Options]) -> dict[str, type[Options]]:
    """The options with each model, where a model decides them."""
    from anomaly_lib.models.detectors.registry import names

    return {name: cls.variant({"model": name}) for name in names()} if "plugin" in cls.CHOOSES else {}


def _values_of(cls: type[Options]) -> dict[str, Sequence[str]]:
    """Each option and the words that may follow it; () = any, or a file."""
    from anomaly_lib.backbones import list_backbones
    from anomaly_lib.data.names import DATASET_NAMES

    known = {"backbone": list_backbones(), "dataset": DATASET_NAMES}
    found: dict[str, Sequence[str]] = {"--help": (), "--config": ()}
    for f in fields(cls):
        choices = f.metadata["options"] or known.get(f.name, ())
        words = ["True", "False"] if f.type == Switch else [str(one) for one in choices]
        found["--" + f.name.replace("_", "-")] = words
    return found


def _function(name: str, table: Mapping[str, Sequence[str]]) -> str:
    """A shell function that prints the words of one entry; entries with the same words share a line."""
    keys: dict[tuple[str, ...], list[str]] = {}
    for key, words in table.items():
        if words:
            keys.setdefault(tuple(words), []).append(key)
    lines: Iterator[str] = (
        f"    {'|'.join(_quoted(key) for key in found)}) printf '%s\\n' {' '.join(map(_quoted, words))} ;;"
        for words, found in keys.items()
    )
    return "\n".join([f"{name}() {{", '  case "$1" in', *lines, "  esac", "}"]) + "\n"


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"
