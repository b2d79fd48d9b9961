"""From data of any shape to the checkpoint of a training run."""

import difflib
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anomaly_lib.data.layouts import is_list
from anomaly_lib.detect.images import pictures_of, single_inputs
from anomaly_lib.errors import OptionError, UserError
from anomaly_lib.models.detectors.registry import names
from anomaly_lib.systems.registry import SYSTEMS

SYSTEMS_OF_IMAGES = ("promptad", "sowa")  # beside the registered detectors


def trained(model: str, data: Any, **options: Any) -> Path:
    """The checkpoint of a run with these options on these data, new or finished before."""
    if "data_path" in options:
        raise OptionError(
            f"data_path={options['data_path']}: the second argument says where the data lie; leave it out"
        )
    system, named = (model, {}) if model in SYSTEMS_OF_IMAGES else ("detectors", {"model": _known(model, options)})
    where = {"dataset": "folder", "data_path": "."}  # looked at before the data are: a wrong option costs no time
    SYSTEMS[system].Args(**(where | named | options))
    where["data_path"] = str(_folder_of(data, options.get("output_dir")))
    result = SYSTEMS[system].train(SYSTEMS[system].Args(**(where | named | options)))
    if result.checkpoint is None:
        raise UserError(f"{result.run_dir}: the run left no checkpoint")
    return result.checkpoint


def _known(model: str, options: dict[str, Any]) -> str:
    """The name of a detector of the registry, or of one that `plugin` brings."""
    choices = [*names(), *SYSTEMS_OF_IMAGES]
    if model not in choices and not options.get("plugin"):
        close = difflib.get_close_matches(str(model), choices, n=1, cutoff=0.5)
        remedy = f"; did you mean {close[0]}?" if close else ""
        raise OptionError(f"model={model}: choose from {', '.join(choices)}{remedy}")
    return model


def _folder_of(data: Any, output_dir: str | Path | None) -> Path:
    """The folder of the data, or the CSV file that lists them.

    Single files and pictures are put into a folder that is named after what they hold.
    """
    if isinstance(data, (str, Path)) and (is_list(data) or not Path(data).is_file()):
        if not is_list(data) and not Path(data).expanduser().is_dir():
            raise UserError(f"{data}: no such folder of images")
        return Path(data)
    if isinstance(data, (Sequence, np.ndarray)) and not len(data):
        raise UserError("data=[]: no images; give a folder, or a list of files, arrays or PIL images")
    room = Path(output_dir) / "parts" if output_dir else Path("runs") / "parts"
    room.mkdir(parents=True, exist_ok=True)
    whole = hashlib.sha256()
    with tempfile.TemporaryDirectory(dir=room, prefix=".new-") as new:
        good = Path(new) / "good"
        good.mkdir()
        for number, (suffix, content) in enumerate(_as_files(single_inputs(data))):
            (good / f"{number:05d}{suffix}").write_bytes(content)
            whole.update(hashlib.sha256(content).digest())
        folder = room / whole.hexdigest()[:12]
        if not folder.is_dir():
            made = Path(new) / "made"
            made.mkdir()
            os.replace(good, made / "good")
            os.replace(made, folder)
    return folder


def _as_files(inputs: Sequence[Any]) -> Iterator[tuple[str, bytes]]:
    """Suffix and content of each file, picture or array; no value is changed but those of coloured floats (8 bits)."""
    for one in inputs:
        (pixels,) = pictures_of([one])  # says what is wrong with it, too
        if isinstance(one, (str, Path)):
            yield Path(one).suffix.lower(), Path(one).read_bytes()
            continue
        out = io.BytesIO()
        grey = pixels.dtype != np.uint8 and bool((pixels == pixels[:, :, :1]).all())
        if grey:
            Image.fromarray(np.ascontiguousarray(pixels[:, :, 0])).save(out, format="TIFF")
        else:
            if pixels.dtype != np.uint8:
                pixels = np.round(pixels.clip(0, 1) * 255).astype(np.uint8)
            Image.fromarray(pixels).save(out, format="PNG", compress_level=1)
        yield ".tif" if grey else ".png", out.getvalue()
