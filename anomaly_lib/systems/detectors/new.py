"""The files of a detector of one's own: its module, its test, and the three files of an HDMAP experiment.

The detector that is written runs as it is: it scores an image by how far its colours lie from those of normal images.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from anomaly_lib.errors import UserError
from anomaly_lib.files import write_text
from anomaly_lib.models.detectors.registry import names

MODULE = '''"""@CLASS@: how far the colours of an image lie from those of normal images."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.config import Options, arg, configure
from anomaly_lib.models.detectors import register
from anomaly_lib.types import Prediction


@dataclass
class @CLASS@Config(Options):
    """@CLASS@: distance to the mean histogram of normal images."""

    bins: int = arg(8, "bins of each colour channel", at_least=2)


@register("@NAME@", config=@CLASS@Config)
class @CLASS@(nn.Module):
    """Images [B, 3, H, W] with values 0..1 -> scores [B], higher for what is less like the normal images."""

    def __init__(self, config: @CLASS@Config | None = None, **options: Any) -> None:
        super().__init__()
        self.config = configure(@CLASS@Config, config, options)
        self.register_buffer("mean", torch.zeros(3 * self.config.bins))  # what a checkpoint keeps

    def histograms(self, images: Tensor) -> Tensor:
        """[B, 3 * bins]: the share of pixels in each bin of each channel."""
        place = (images * self.config.bins).long().clamp(0, self.config.bins - 1).flatten(2)
        return nn.functional.one_hot(place, self.config.bins).float().mean(2).flatten(1)

    def fit(self, batches: Iterable[Tensor]) -> "@CLASS@":
        """Learn normal images, batch by batch."""
        self.mean = torch.cat([self.histograms(images) for images in batches]).mean(0)
        return self

    def forward(self, images: Tensor) -> Prediction:
        return Prediction((self.histograms(images) - self.mean).abs().sum(1))
'''

TEST = '''"""@CLASS@ tells an image of other colours from normal ones."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detectors.@NAME@ import @CLASS@


def test_other_colours_score_higher() -> None:
    normal = 0.5 + 0.01 * torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    detector = @CLASS@().fit([normal[:3], normal[3:5]])
    same, other = detector(torch.stack([normal[5], torch.zeros(3, 32, 32)])).score
    assert other > 1 > same
'''

SCRIPT = '''#!/usr/bin/env python3
"""HDMAP domain transfer with @NAME@: one condition of the JSON file beside this script."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

@LOADING@from anomaly_lib.systems.detectors.hdmap.script import script_main

@PLUGIN@
def train_@NAME@_model_multi_domain(
    datamodule: Any, config: dict[str, Any], results_base_dir: str | Path, logger: Any
) -> tuple[Any, Any, Path | None]:
    """The module, its detector and its best checkpoint (None where nothing is trained) on a data module."""
    from anomaly_lib.systems.detectors.hdmap.experiment import train_model_multi_domain

    return train_model_multi_domain("@NAME@", datamodule, config, results_base_dir, logger)


def run_single_@NAME@_experiment(condition: dict[str, Any], log_dir: str | None = None) -> dict[str, Any]:
    """The result of one condition; a failure is told in it."""
    from anomaly_lib.systems.detectors.hdmap.experiment import run_single_experiment

    return run_single_experiment("@NAME@", condition, log_dir)


def main(argv: Sequence[str] | None = None) -> int:
    return script_main("@NAME@", __file__, argv)


if __name__ == "__main__":
    sys.exit(main())
'''

RUN = """#!/usr/bin/env bash
# All conditions of multi_domain_hdmap_@NAME@-exp_condition.json, one after the other; what is finished is not repeated.
#   LOG_DIR=results/@NAME@/one GPU=0 DATA_PATH=... ./multi_domain_hdmap_@NAME@-run.sh
# To stop it and its training: pkill -f multi_domain_hdmap_@NAME@-run.sh, or LOG_DIR=... with --stop.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
script="$here/multi_domain_hdmap_@NAME@-training.py"
python="${PYTHON:-python}"
logs="${LOG_DIR:-results/@NAME@/$(date +%Y%m%d_%H%M%S)}"
if [ "${1:-}" = --stop ]; then
  exec kill -TERM "$(cat "$logs/run.pid")"
fi
child="" stopped=""
stop() {
  stopped=1
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true
}
trap stop INT TERM HUP
mkdir -p "$logs"
echo $$ >"$logs/run.pid"
trap 'rm -f "$logs/run.pid"' EXIT
count="$("$python" "$script" --get-experiment-count)"
for ((i = 0; i < count; i++)); do
  [ -z "$stopped" ] || exit 130
  "$python" "$script" --gpu-id "${GPU:-0}" --experiment-id "$i" --log-dir "$logs" \\
    ${DATA_PATH:+--data-path "$DATA_PATH"} "$@" &
  child=$! code=0
  [ -z "$stopped" ] || stop
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal has ended the waiting, not the training
    code=0
    wait "$child" || code=$?
  done
  [ -z "$stopped" ] || code=130
  [ "$code" = 0 ] || exit "$code"
done
"""

LOADING = "from anomaly_lib.models.detectors.registry import load_plugin\n"
PLUGIN = 'load_plugin(Path(__file__).resolve().parent / "detectors" / "@NAME@.py")\n\n'


def training_script(name: str, *, plugin: bool) -> str:
    """The text of ``multi_domain_hdmap_NAME-training.py``."""
    text = SCRIPT.replace("@LOADING@", LOADING if plugin else "").replace("@PLUGIN@", PLUGIN if plugin else "")
    return text.replace("@NAME@", name)


def files_of(name: str) -> Iterator[tuple[str, str]]:
    """(path, text) of each file."""
    words = {"@NAME@": name, "@CLASS@": "".join(word.capitalize() for word in name.split("_"))}
    condition = {"source_domain": "domain_A", "target_domains": "auto", "batch_size": 16, "image_size": "224x224"}
    conditions = [
        {"name": f"{name}_{bins}_bins", "description": f"{bins} bins a channel", "config": condition | {"bins": bins}}
        for bins in (8, 16)
    ]
    stem = f"multi_domain_hdmap_{name}"
    yield f"{stem}-training.py", training_script(name, plugin=True)
    yield f"{stem}-exp_condition.json", json.dumps({"experiment_conditions": conditions}, indent=2) + "\n"
    for path, text in ((f"detectors/{name}.py", MODULE), (f"tests/test_{name}.py", TEST), (f"{stem}-run.sh", RUN)):
        for word, meaning in words.items():
            text = text.replace(word, meaning)
        yield path, text


def write_detector(name: str, folder: Path) -> list[Path]:
    """Write the files of a new detector into `folder`; nothing that is there is overwritten."""
    if not name.isidentifier() or name != name.lower():
        raise UserError(f"name={name}: takes lower-case letters, digits and _, e.g. my_detector")
    if name in names():
        raise UserError(f"name={name}: there is such a detector already")
    files = [(folder / path, text) for path, text in files_of(name)]
    there = [path for path, _ in files if path.exists()]
    if there:
        raise UserError(f"{there[0]}: is there already; choose another name or folder")
    for path, text in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        if path.suffix == ".sh":
            path.chmod(0o755)
    return [path for path, _ in files]
