"""What the commands of the pages read: data, checkpoints and weights of demo scale, under the names the pages use."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.commands.pages import LEAVES, ROOT
from tests.support import crystal_originals
from tests.support.making import Made

Maker = Callable[[Made, Path], object]
"""What puts a file or folder at a path."""


CONDITION = {
    "name": "small", "description": "one epoch on small maps",
    "config": {"image_size": "32x96", "max_epochs": 1, "figures": False, "target_domains": ["domain_B"]},
}  # fmt: skip


PROMPTAD = "--backbone tiny-clip --weights random"
"""What `$W` is to a block of promptad.md that does not set it."""


class World:
    """Scratch folders below `root`; what the commands of a page name is made when one of them first names it."""

    def __init__(self, root: Path, binaries: Path) -> None:
        (root / "made").mkdir()
        self.root, self.binaries, self.made = root, binaries, Made(root / "made")
        crystal_originals.tiny_bert(root / "made" / "matscibert")
        (root / "conditions.json").write_text(json.dumps({"experiment_conditions": [CONDITION]}))

    def folder(self, page: str, script: str) -> Path:
        """The folder of a page, with what `script` reads in it."""
        folder = self.root / page.removesuffix(".md")
        if not folder.exists():
            folder.mkdir()
            for path in (*ROOT.glob("*.py"), ROOT / "scripts", ROOT / "pyproject.toml"):
                (folder / path.name).symlink_to(path)
            (folder / "tests").mkdir()  # its own: `new-detector` writes a test into it
            for path in (ROOT / "tests").iterdir():
                (folder / "tests" / path.name).symlink_to(path)
        self._fill(folder, LEAVES.sub("", script), {**SHARED, **BY_PAGE.get(page, {})})
        return folder

    def _fill(self, folder: Path, script: str, names: dict[str, "Maker | str"]) -> None:
        for name, make in names.items():
            place = folder / name
            if not re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", script) or place.exists():
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(make, str):
                self._fill(folder, make, {other: how for other, how in names.items() if other != name})
                self.run(make, folder)
            else:
                make(self.made, place)

    def run(self, script: str, folder: Path, seconds: float = 1800.0) -> str:
        """What the commands say; they must end well."""
        file = self.root / "block.sh"
        file.write_text(f"set -eo pipefail\n{script}")
        environment = {
            **os.environ, "PATH": f"{self.binaries}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "WANDB_MODE": "offline",
            "ANOMALY_LIB_WEIGHTS": str(self.root / "made"), "ANOMALY_LIB_CACHE": str(self.root / "cache"),
            "HOME": str(folder), "W": PROMPTAD, "SMALL_CONDITIONS": str(self.root / "conditions.json"),
        }  # fmt: skip
        process = subprocess.Popen(
            ["bash", str(file)], cwd=folder, env=environment, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert process.returncode == 0, f"{script}\n{said[-3000:]}"
        return said


def copy(source: Path, place: Path) -> None:
    (shutil.copytree if source.is_dir() else shutil.copyfile)(source, place)


def classes(*names: str) -> Maker:
    """A data set in MVTec's layout with classes of these names."""

    def write(made: Made, place: Path) -> None:
        for name in names:
            copy(made.images() / "grid", place / name)

    return write


def copied(find: Callable[[Made], object]) -> Maker:
    """A copy of what has been made once."""
    return lambda made, place: copy(Path(str(find(made))), place)


def both_sets(made: Made, place: Path) -> None:
    """The folder of MVTec and VisA."""
    classes("bottle", "toothbrush", "hazelnut", "metal_nut")(made, place / "mvtec")
    classes("candle", "pipe_fryum", "capsules", "pcb2")(made, place / "visa")


def maps(_: Made, place: Path) -> None:
    from anomaly_lib.systems.detectors.hdmap.demo_maps import write_hdmap_demo

    shutil.copytree(write_hdmap_demo(place.with_name("drawn"), train=4, test=3, seed=0), place)


def anomalib_patchcore(made: Made, place: Path) -> None:
    import torch

    from anomaly_lib.models.detectors.anomalib_keys import to_anomalib
    from anomaly_lib.systems.registry import SYSTEMS

    detector = SYSTEMS.load(made.checkpoint("detectors", "wide", model="patchcore", backbone="wide_resnet50_2"))
    torch.save({"state_dict": to_anomalib(detector.model)}, place)


def random_resnet18(made: Made, _: Path) -> None:
    """Under the published name, where weights are looked for."""
    import torch
    from torchvision.models import resnet18

    torch.save(resnet18(weights=None).state_dict(), made.root / "resnet18-f37072fd.pth")


def their_crystal(made: Made, place: Path) -> None:
    copy(crystal_originals.best_test_model(made.root), place)


FILM = "MORE='--epochs 1' bash scripts/weld/train_causal_film.sh --wandb"
SHARED: dict[str, Maker | str] = {
    "MVTec": classes("bottle", "metal_nut", "screw", "transistor"),
    "MVTEC": classes("bottle", "toothbrush", "hazelnut", "metal_nut"),
    "VisA": classes("pcb1"),
    "VISA": classes("pcb1", "candle"),
    "DATA": both_sets,
    "result/harmonic_baseline": (
        "for task in cls seg; do python train_$task.py --dataset mvtec --data-path DATA/mvtec --obj bottle --shot 1 "
        "--epoch 100 --fusion-mode harmonic "
        "--save-path result/harmonic_baseline/mvtec/k_1/bottle/${task}_checkpoint.pth; done"
    ),
    "result/gate": "bash scripts/promptad/run_gate_all.sh result/harmonic_baseline gate",
    "result/gate_harmonic": "bash scripts/promptad/run_gate_all.sh result/harmonic_baseline gate_harmonic",
    "best_test_model.pt": their_crystal,
    "best_test_model_scaled_12.0.pt": their_crystal,
    "runs/weld/causal_film/best_model.pth": FILM,
}
TRAINED_CRYSTAL = copied(lambda made: made.crystal())
BY_PAGE: dict[str, dict[str, Maker | str]] = {
    "README.md": {
        "run": "python train_cls.py --dataset mvtec --data-path MVTec --obj bottle --output-dir run",
        "images": copied(lambda made: made.images() / "grid"),
        "parts": copied(lambda made: made.images() / "grid"),
    },
    "causal_film.md": {
        "DATA": copied(Made.welds),
        "welds": copied(Made.welds),
        "A": "python train_causal_film.py --epochs 1 --data-path welds --output-dir A",
        "B": "python scripts/weld/train_video_ae.py --data-path welds --output-dir B",
        "C": ("python train_causal_film.py --epochs 1 --data-path welds --target-mode joint --seed 1 --output-dir C"),
    },
    "coming_from_promptad.md": {
        "CLS-Seed_111-bottle-check_point.pt": copied(lambda made: made.released("CLS-Seed_111-bottle-check_point.pt")),
        "runs/x": copied(lambda made: made.paper_run().parent),
    },
    "commands.md": {
        "runs/sowa/hfwa": (
            "python scripts/sowa/train_sowa.py --dataset mvtec --data-path MVTec --output-dir runs/sowa/hfwa"
        ),
        "welds": copied(Made.welds),
        "OUTPUTS/checkpoints/best_model.pth": (
            "MORE='--epochs 1' python train_causal_film.py --wandb --output-dir OUTPUTS/run; "
            "mkdir -p OUTPUTS/checkpoints; cp OUTPUTS/run/best_model.pth OUTPUTS/checkpoints"
        ),
        "../dataset": copied(Made.crystals),
        "existing_model.pt": TRAINED_CRYSTAL,
        "outputs/fusion_improved/formation_energy_peratom/best_model.pt": TRAINED_CRYSTAL,
    },
    "crystal.md": {
        "dataset": copied(Made.crystals),
        "outputs/fusion_improved/formation_energy_peratom/best_model.pt": TRAINED_CRYSTAL,
        "A.pt": TRAINED_CRYSTAL,
        "B.pt": copied(lambda made: made.crystal(5)),
        "my_cifs": copied(Made.structures),
        "id_prop.csv": copied(lambda made: made.structures() / "id_prop.csv"),
        "matscibert": lambda _, place: crystal_originals.tiny_bert(place),
        "runs/crystal": copied(Made.crystal_run),
    },
    "evaluation.md": {
        "runs/promptad/NAME": copied(lambda made: made.run("promptad")),
        "result": (
            "python train_cls.py --dataset mvtec --data-path MVTec --obj bottle --save-path "
            "result/mvtec/k_1/bottle/cls_checkpoint.pth"
        ),
        "A": copied(lambda made: made.run("promptad")),
        "B": copied(lambda made: made.run("promptad", "B", fusion_mode="max")),
        "FILE": copied(lambda made: made.checkpoint("detectors", "padim", model="padim")),
        "images": copied(lambda made: made.images() / "grid" / "test"),
        "FOLDER": copied(lambda made: made.images() / "grid" / "train"),
        "normal_images": copied(lambda made: made.images() / "grid" / "train" / "good"),
    },
    "features.md": {"resnet18": random_resnet18},
    "hdmap.md": {
        "dtd/images": copied(lambda made: made.images() / "woven" / "train" / "good"),
        "my_parts": copied(lambda made: made.images() / "grid"),
        "model.ckpt": anomalib_patchcore,
        "datasets/HDMAP/1000_tiff_minmax": maps,
    },
    "own_detector.md": {
        "parts": copied(lambda made: made.images() / "grid"),
        "new.png": copied(lambda made: made.pictures()[0]),
        "RUN": (
            "mkdir before; (cd before; python -m anomaly_lib new-detector my_colours); "
            "python scripts/train_detector.py --plugin before/detectors/my_colours.py --model my_colours "
            "--dataset folder --data-path parts --output-dir RUN"
        ),
    },
    "weld.md": {
        "DATA": copied(Made.welds_of_each_class),
        **{
            name: copied(lambda made, seed=seed: made.quad(seed))
            for seed, name in enumerate(("BEST", "BEST2", "BEST3"))
        },
    },
}
