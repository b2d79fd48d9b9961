"""Loading a float32 safetensors file maps it: the process grows by a small share of its size, at the peak too."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from anomaly_lib.backbones import create_backbone

pytestmark = pytest.mark.slow

# A process of its own for each measurement. A tiny network is loaded first, so that imports are not counted.
BEFORE = r"""
import gc, json, re, threading, time
from pathlib import Path
import torch
torch.set_num_threads(1)

def anonymous():
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
"""
START = """
gc.collect()
before = peak = anonymous()
running = True

def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
"""
END = """
peak = max(peak, anonymous())
running = False
thread.join()
print(peak - before)
"""
LOAD = """
from anomaly_lib.backbones import create_backbone
net = create_backbone({!r}, weights={!r}, layers=("pooled",))
"""
CONVERT = """
from scripts.convert_weights import convert
convert(Path({!r}), Path({!r}))
"""


def peak_growth(warm: str, work: str) -> int:
    """Bytes by which `work` raised the process's own (not file-backed) memory, at the worst moment."""
    code = "".join([BEFORE, warm, START, work, END])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def saved(name: str, path: Path) -> Path:
    backbone: Any = create_backbone(name, weights="random", layers=("pooled",))
    net = backbone.clip if hasattr(backbone, "clip") else backbone.net
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, path)
    return path


@pytest.mark.parametrize(
    ("name", "tiny"),
    [
        ("ViT-B-32:openai", "tiny-clip"),
        ("wide_resnet50_2", "resnet18"),
        ("timm:vit_base_patch16_224", "timm:test_vit"),
        ("timm:vit_base_patch16_dinov3", "timm:test_vit"),
        ("dinov2-base", "tiny-dinov2"),
    ],
)
def test_a_mapped_file_takes_no_memory(name: str, tiny: str, tmp_path: Path) -> None:
    file = saved(name, tmp_path / "net.safetensors")
    warm = LOAD.format(tiny, str(saved(tiny, tmp_path / "tiny.safetensors")))
    size = file.stat().st_size
    assert size > 200 * 2**20
    assert peak_growth(warm, LOAD.format(name, str(file))) < 0.15 * size


def test_conversion_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    state = {f"block.{index}.weight": torch.randn(1024, 2048).half() for index in range(50)}  # 200 MiB
    torch.save(state, tmp_path / "net.pt")
    torch.save({"a": torch.ones(3).half()}, tmp_path / "tiny.pt")
    pairs = [(str(tmp_path / f"{name}.pt"), str(tmp_path / f"{name}.safetensors")) for name in ("tiny", "net")]
    growth = peak_growth(CONVERT.format(*pairs[0]), CONVERT.format(*pairs[1]))
    assert (tmp_path / "net.safetensors").stat().st_size > 400 * 2**20
    assert growth < 30 * 2**20
