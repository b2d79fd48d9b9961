"""Where weights lie: the given path, $ANOMALY_LIB_WEIGHTS, local hub caches, then a download if it is allowed."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from anomaly_lib.errors import UserError

ROOT_VARIABLE = "ANOMALY_LIB_WEIGHTS"
RANDOM = "random"


class MissingWeights(UserError):
    """Published weights that are not on this machine."""


@contextmanager
def demo_clip_offered(fits: bool = True) -> Iterator[None]:
    """Where published weights are missing and the packaged demo CLIP `fits` in their place, say so."""
    try:
        yield
    except MissingWeights as error:
        if not fits:
            raise
        offer = "or try it out with backbone=demo-clip, the small demo backbone that knows drawn pictures alone"
        raise MissingWeights(f"{error}; {offer}") from None


@dataclass(frozen=True)
class WeightSource:
    """One place weights are published at: a web address, a file (or all) of a hub repository, or a local file."""

    url: str = ""
    hub: str = ""  # "owner/name" on the Hugging Face hub
    filename: str = ""  # inside the hub repository; "" stands for the whole repository (config and weights)
    file: Path | None = None  # a file that comes with the package or lies beside its config

    @property
    def local_name(self) -> str:
        """What a copy is called inside $ANOMALY_LIB_WEIGHTS."""
        if self.file:
            return self.file.name
        if self.url:
            return Path(urlsplit(self.url).path).name
        return f"{self.hub.split('/')[-1]}/{self.filename}" if self.filename else self.hub.replace("/", "--")

    def command(self, root: str) -> str:
        """A shell line that fetches it into ``root``."""
        if self.url:
            return f"wget -P {root} {self.url}"
        if self.filename:
            return f"hf download {self.hub} {self.filename} --local-dir {root}/{Path(self.local_name).parent}"
        return f"hf download {self.hub} --local-dir {root}/{self.local_name}"

    def in_folder(self, root: Path) -> Path | None:
        """A copy below ``root``, as `local_name` or under the repository's name (of one file: both joined by --)."""
        names = [self.local_name]
        if self.hub:
            names.append(
                f"{self.hub.replace('/', '--')}--{self.filename}" if self.filename else self.hub.split("/")[-1]
            )
        for name in names:
            path = root / name
            if path.is_file() or (path.is_dir() and not self.filename and not self.url):
                return path
        return None

    def in_caches(self) -> Path | None:
        """A copy in torch.hub's, open_clip's or the Hugging Face hub's own cache."""
        if self.file:
            return self.file if self.file.is_file() else None
        if self.url:
            import torch

            folders = [Path(torch.hub.get_dir()) / "checkpoints", Path("~/.cache/clip").expanduser()]
            return next((f / self.local_name for f in folders if (f / self.local_name).is_file()), None)
        from huggingface_hub import try_to_load_from_cache

        files = [self.filename] if self.filename else ["model.safetensors", "pytorch_model.bin"]
        for file in files:
            path = try_to_load_from_cache(self.hub, file)
            if isinstance(path, str):
                return Path(path) if self.filename else Path(path).parent
        return None

    def fetch(self) -> Path:
        """Let the library that owns the cache download it."""
        if self.url:
            import torch

            target = Path(torch.hub.get_dir()) / "checkpoints" / self.local_name
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(self.url, str(target), progress=False)
            return target
        from huggingface_hub import hf_hub_download, snapshot_download

        if self.filename:
            return Path(hf_hub_download(self.hub, self.filename))
        return Path(
            snapshot_download(self.hub, allow_patterns=["*.json", "*.safetensors", "*.bin", "*.txt", "*.model"])
        )


def resolve_weights(
    owner: str, weights: str | Path | None, sources: Sequence[WeightSource], *, download: bool
) -> Path | None:
    """The local file or folder to load for backbone ``owner``; None stands for random weights, asked for by name.

    ``weights`` is a path, ``"random"``, a file name below $ANOMALY_LIB_WEIGHTS, or None for the published ``sources``.
    """
    if weights == RANDOM:
        return None
    root = os.environ.get(ROOT_VARIABLE, "")
    if weights is not None:
        path = Path(weights).expanduser()
        if path.exists():
            return path
        if root and (Path(root) / path).exists():
            return Path(root) / path
        raise UserError(
            f"weights={weights}: no such file or folder (also not below ${ROOT_VARIABLE}={root or 'unset'})"
        )
    for source in sources:
        found = (source.in_folder(Path(root)) if root else None) or source.in_caches()
        if found:
            return found
    if not sources:
        raise UserError(f"backbone {owner} has no published weights; give weights=FILE or weights=random")
    first = sources[0]
    if first.file:
        raise UserError(f"backbone {owner}: {first.file} is missing; reinstall, or give weights=FILE or weights=random")
    if download:
        try:
            return first.fetch()
        except Exception as error:  # network, disk and licence errors all end in the same advice
            raise MissingWeights(
                f"backbone {owner}: download of {first.local_name} failed ({error}); {_advice(first, root)}"
            ) from error
    raise MissingWeights(f"backbone {owner} needs the weights {first.local_name}; {_advice(first, root)}")


def _advice(source: WeightSource, root: str) -> str:
    place = root or "weights"
    remember = "" if root else f"export {ROOT_VARIABLE}=weights && "
    return f"get them with `{remember}{source.command(place)}`, or give weights=FILE, download=True or weights=random"
