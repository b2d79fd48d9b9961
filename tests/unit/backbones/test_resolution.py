"""Where weights are looked for, in which order, and what is said when they are nowhere."""

import re
from pathlib import Path

import pytest
import torch

from anomaly_lib.backbones import create_backbone
from anomaly_lib.backbones.sources import WeightSource, resolve_weights
from anomaly_lib.errors import UserError
from train_cls import main as train_cls

NAMED = [
    "ViT-B-16-plus-240", "ViT-B-16", "ViT-B-16:openai", "ViT-L-14-336", "ViT-L-14-336:openai", "resnet18", "resnet34",
    "resnet50", "wide_resnet50_2", "mobilenet_v2", "timm:vit_tiny_patch16_224", "timm:vit_small_patch14_dinov2",
    "timm:vit_small_patch16_dinov3", "timm:mobilenetv2_100", "dinov2-base", "dinov3-vitb16", "vjepa2-vitl", "ast-14-14",
    "matscibert",
]  # fmt: skip


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of torch.hub, open_clip and the Hugging Face hub, no root, and a network that is never used."""
    import huggingface_hub
    from huggingface_hub import constants

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError("no route to host")

    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, refuse)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ANOMALY_LIB_WEIGHTS", raising=False)
    return tmp_path


def hub_copy(caches: Path, repository: str, file: str) -> Path:
    """A file in the layout of the Hugging Face hub's cache."""
    folder = caches / "hf" / f"models--{repository.replace('/', '--')}"
    path = folder / "snapshots" / "0123" / file
    path.parent.mkdir(parents=True)
    path.touch()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123")
    return path


def test_order_of_places(caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    root.mkdir()
    source = WeightSource(url="https://example.org/some/net-1234.pth")
    with pytest.raises(UserError, match=r"net-1234\.pth.*wget -P weights https://example\.org/some/net-1234\.pth"):
        resolve_weights("net", None, [source], download=False)
    cached = caches / "hub" / "checkpoints" / "net-1234.pth"
    cached.touch()
    assert resolve_weights("net", None, [source], download=True) == cached  # a copy is there: nothing is downloaded
    monkeypatch.setenv("ANOMALY_LIB_WEIGHTS", str(root))
    (root / "net-1234.pth").touch()
    assert resolve_weights("net", None, [source], download=True) == root / "net-1234.pth"
    (root / "mine.pt").touch()
    assert resolve_weights("net", "mine.pt", [source], download=False) == root / "mine.pt"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pt").touch()
    assert resolve_weights("net", "mine.pt", [source], download=False) == Path("mine.pt")  # the path as it was given
    assert resolve_weights("net", "random", [source], download=False) is None
    with pytest.raises(UserError, match="no such file"):
        resolve_weights("net", "absent.pt", [source], download=False)


def test_hub_cache_comes_before_a_download(caches: Path) -> None:
    whole, one = WeightSource(hub="owner/net"), WeightSource(hub="timm/vit.tag", filename="model.safetensors")
    for source in (whole, one):
        with pytest.raises(UserError, match=r"no route to host.*hf download"):
            resolve_weights("net", None, [source], download=True)
    file = hub_copy(caches, "owner/net", "model.safetensors")
    assert resolve_weights("net", None, [whole], download=True) == file.parent
    file = hub_copy(caches, "timm/vit.tag", "model.safetensors")
    assert resolve_weights("net", None, [one], download=True) == file


def test_a_broken_download_ends_in_advice(caches: Path) -> None:
    with pytest.raises(UserError, match=r"no route to host.*wget"):
        resolve_weights("net", None, [WeightSource(url="https://example.org/net.pth")], download=True)


@pytest.mark.parametrize("name", NAMED)
def test_the_line_names_what_its_command_makes(name: str, caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALY_LIB_WEIGHTS", str(caches / "root"))
    with pytest.raises(UserError) as caught:
        create_backbone(name)
    line = str(caught.value)
    assert "\n" not in line
    assert "weights=FILE, download=True or weights=random" in line
    found = re.search(r"needs the weights (\S+); get them with `(.*)`", line)
    assert found is not None
    wanted, command = found.groups()
    program, *rest = command.split()
    if program == "wget":
        assert rest[0] == "-P"
        made = Path(rest[1]) / rest[2].rpartition("/")[2]
    else:
        assert [program, rest[0]] == ["hf", "download"]
        made = Path(rest[-1]) / (rest[2] if rest[2] != "--local-dir" else "")
    assert made == caches / "root" / wanted
    made.parent.mkdir(parents=True, exist_ok=True)
    if made.suffix in (".pth", ".pt", ".safetensors", ".bin"):
        made.write_bytes(b"not weights")
    else:
        made.mkdir()
    with pytest.raises(UserError, match=re.escape(str(made))):  # found, opened, and refused for its content
        create_backbone(name)


def test_command_line_says_it_in_one_line(caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_cls(["--backbone", "ViT-B-16-plus-240", "--output-dir", str(caches / "run")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "vit_b_16_plus_240-laion400m_e32-699c4b84.pt" in lines[0]
    assert "export ANOMALY_LIB_WEIGHTS=weights && wget -P weights https://" in lines[0]
