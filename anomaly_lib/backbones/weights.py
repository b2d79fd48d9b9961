"""Reading weight files of every usual format into a plain state dict, without running anybody's code."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from anomaly_lib.errors import UserError

StateDict = dict[str, Tensor]

# Where a training script may have put the weights inside its checkpoint, in the order they are looked for.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "weights")
FOLDER_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
# Entries of OpenAI archives that describe the network instead of being weights.
NOT_WEIGHTS = frozenset({"input_resolution", "context_length", "vocab_size"})
QUICK_GELU = "quick_gelu"  # "1" in the metadata of a safetensors file whose CLIP was trained with QuickGELU
# Endings of what decides the output of a folder: weights, sizes, vocabularies.
DECIDES = frozenset({".safetensors", ".bin", ".json", ".txt", ".model"})
T = TypeVar("T")


def read_state_dict(path: Path) -> StateDict:
    """All tensors of a weight file or of a Hugging Face folder, keys as they stand there.

    Knows safetensors (memory-mapped), ``torch.save`` files (memory-mapped, ``weights_only``), TorchScript archives as
    OpenAI ships CLIP, sharded and unsharded Hugging Face folders, and checkpoints with the weights one level down.
    """
    if not path.exists():
        raise UserError(f"{path}: no such weight file or folder")
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return _safely(load_file, path)
    if is_torchscript(path):
        archive = torch.jit.load(str(path), map_location="cpu")
        tensors = {**dict(archive.named_parameters()), **dict(archive.named_buffers())}
        return {key: value.detach() for key, value in tensors.items() if key not in NOT_WEIGHTS}
    return tensors_of(read_torch_file(path), source=str(path))


def read_torch_file(path: Path) -> Any:
    """A ``torch.save`` file as plain data; objects of foreign classes come back as a `StandIn` each."""
    try:
        mapped = zipfile.is_zipfile(path)  # files of torch < 1.6 are no archives and cannot be mapped
        stand_ins: list[Any] = []
        if mapped:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
            stand_ins = [(StandIn, name) for name in names]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # whatever is wrong with the file, the user's remedy is the same
        reason = why_unreadable(error)
        raise UserError(f"{path}: not a readable weight file ({reason}); fetch or convert it again") from error


def why_unreadable(error: Exception) -> str:
    """One line, without the terminal codes of torch's own, of what torch.load says about a file."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    return "opening it would run foreign code" if reason.startswith("Weights only load failed") else reason


class StandIn:
    """Takes the place of an object whose class is not ours to import: nothing of that class is ever run."""

    state: Any = None  # what the file says the object held, as plain data

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        self.state = state

    def values(self) -> dict[str, Any]:
        """Attribute -> value, as far as the file tells; pydantic keeps them one level down."""
        state = self.state if isinstance(self.state, dict) else {}
        inner = state.get("__dict__", state)
        return {str(name): value for name, value in inner.items()} if isinstance(inner, dict) else {}


def tensors_of(loaded: object, *, source: str) -> StateDict:
    """The tensors of a loaded checkpoint: its own, or those of the first known container inside that holds more."""
    if isinstance(loaded, nn.Module):
        loaded = loaded.state_dict()
    if isinstance(loaded, Mapping):
        tensors = {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
        inner = [loaded[key] for key in CONTAINERS if isinstance(loaded.get(key), Mapping)]
        for candidate in inner:
            found = {str(key): value for key, value in candidate.items() if isinstance(value, Tensor)}
            if len(found) > len(tensors):
                return found
        if tensors:
            return tensors
    raise UserError(f"{source}: holds no tensors (looked at the top level and in {', '.join(CONTAINERS)})")


def _safely(reader: Callable[[str], T], path: Path) -> T:
    from safetensors import SafetensorError

    try:
        return reader(str(path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); fetch or convert it again") from error


def _read_folder(folder: Path) -> StateDict:
    for stem in FOLDER_FILES:
        if (folder / stem).exists():
            return read_state_dict(folder / stem)
        index = folder / f"{stem}.index.json"
        if index.exists():
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            return {key: value for shard in shards for key, value in read_state_dict(folder / shard).items()}
    raise UserError(f"{folder}: no model.safetensors or pytorch_model.bin in this folder")


def uses_quick_gelu(path: Path) -> bool:
    """True for an archive of OpenAI, all of which use QuickGELU, and for what convert_weights.py made of one."""
    if path.suffix != ".safetensors" or not path.is_file():
        return is_torchscript(path)
    from safetensors import safe_open

    return (_safely(lambda name: safe_open(name, "pt").metadata(), path) or {}).get(QUICK_GELU) == "1"


def is_torchscript(path: Path) -> bool:
    """True for a TorchScript archive, the form OpenAI ships CLIP in."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def strip_prefix(found: StateDict, wanted: Collection[str]) -> StateDict:
    """Drop whatever stands before the ``wanted`` names in every key of ``found``.

    Wrappers prepend their own path (``module.``, ``net.clip_model.``, ``model.feature_extractor.feature_extractor.``).
    The prefix that makes most wanted names appear wins; with none better, keys stay as they are.
    """
    probes = sorted(wanted, key=len, reverse=True)[:8]
    prefixes = {key[: -len(probe)] for probe in probes for key in found if key.endswith("." + probe)}
    best = max(sorted(prefixes | {""}, key=len), key=lambda prefix: sum(prefix + name in found for name in wanted))
    return {key[len(best) :]: value for key, value in found.items() if key.startswith(best)}


def load_into(
    module: nn.Module,
    found: StateDict,
    *,
    source: str,
    optional: Iterable[str] = (),
    dtype: torch.dtype = torch.float32,
) -> None:
    """Put ``found`` into ``module`` (which may live on the meta device), every floating tensor as ``dtype``.

    A wanted tensor that is missing or of another shape is an error naming it, unless its name starts with one of
    ``optional``; tensors the module does not have are left alone (heads, other towers). Tensors that already have the
    right type are taken over as they are, so a memory-mapped file costs no memory until it is read.
    """
    wanted = module.state_dict()
    found = strip_prefix(found, wanted.keys())
    skip = tuple(optional)
    counters = ".num_batches_tracked"  # of batch norm; older files lack them and no output depends on them
    missing = [n for n in wanted if n not in found and not n.startswith(skip) and not n.endswith(counters)]
    if missing:
        count = f"{len(missing)} of {len(wanted)} tensors are missing"
        raise UserError(f"{source}: {count}, first {missing[0]!r}; is this the file of another network?")
    for name, value in wanted.items():
        if name in found and found[name].shape != value.shape:
            shapes = f"{tuple(found[name].shape)}, this network needs {tuple(value.shape)}"
            raise UserError(f"{source}: {name} has shape {shapes}; is this the file of another network?")
    matching = {name: _cast(found[name], dtype) for name in wanted if name in found}
    # What the file may lack (counters, a bias no output reads) must not stay on the meta device.
    left = {name: torch.zeros(v.shape, dtype=v.dtype) for name, v in wanted.items() if name not in found and v.is_meta}
    module.load_state_dict({**matching, **left}, strict=False, assign=True)


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def file_sha256(path: Path) -> str:
    """SHA-256 of a weight file, or of all weights, configs and vocabularies of a folder in name order."""
    files = [path]
    digest = hashlib.sha256()
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in DECIDES)
        digest.update("/".join(file.name for file in files).encode())
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
