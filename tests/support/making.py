"""Tiny checkpoints, data and results that programs read, each made once a session, when it is first asked for."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_lib import __main__ as commands
from anomaly_lib.systems.registry import SYSTEMS


class Made:
    """What lies in `root`, and what is put there when it is asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _once(self, name: str, make: Callable[[Path], Any]) -> Path:
        place = self.root / name
        if not place.exists():
            make(place)
        return place

    def checkpoint(self, system: str, name: str = "", **changes: Any) -> str:
        """A checkpoint of `system` at tiny size."""
        tiny = {"figures": False} if hasattr(SYSTEMS[system].Args, "figures") else {}
        folder = self.root / f"{system}{name}"
        result = SYSTEMS[system].train(SYSTEMS[system].tiny(**tiny, **changes, output_dir=str(folder)))
        return str(result.checkpoint)

    def run(self, system: str, name: str = "", **changes: Any) -> Path:
        """The folder of that checkpoint."""
        return Path(self.checkpoint(system, name, **changes)).parent

    def demo(self, system: str) -> Path:
        """The built-in data of a system as files."""
        return self._once(
            f"demo-{system}", lambda place: commands.main(["demo", "--system", system, "--output", str(place)])
        )

    def images(self) -> Path:
        """Two pictures in MVTec's layout, one of them good: `grid` of the demo data at 64 pixels."""
        from anomaly_lib.data.demo.items import write_demo

        return self._once(
            "images",
            lambda place: write_demo(place, categories=["grid", "woven"], size=64, train=4, test_good=3, per_defect=1),
        )

    def crystals(self) -> Path:
        """Sixty crystals in the published layout."""
        from anomaly_lib.systems.crystal.data.demo import write_crystal_demo

        return self._once("crystals", lambda place: write_crystal_demo(place, count=60))

    def welds(self) -> Path:
        """A few welds as files."""
        from anomaly_lib.systems.weld.data.demo import write_weld_demo

        return self._once("welds", lambda place: write_weld_demo(place, train=6, good=2, per_defect=1))

    def welds_of_each_class(self) -> Path:
        """Welds as files, each class in each split, as V4 needs them."""
        from anomaly_lib.systems.weld.data.demo import write_weld_demo

        return self._once("quad", lambda place: write_weld_demo(place, train=4, good=1, per_defect=1, supervised=True))

    def maps(self) -> Path:
        """HDMAP's raw MATLAB files, twelve maps each."""
        from scipy.io import savemat

        from anomaly_lib.systems.detectors.hdmap.convert import CLASS_SENSOR_NEW, mat_paths

        def write(place: Path) -> None:
            generator = np.random.default_rng(0)
            for condition, sensor in CLASS_SENSOR_NEW.values():
                for path in mat_paths(place, condition, sensor).values():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    savemat(path, {"Xdata": generator.random((31, 95, 1, 12)) + condition + sensor / 10})

        return self._once("maps", write)

    def structures(self) -> Path:
        """Four CIF files and ALIGNN's id_prop.csv."""
        found = sorted(self.crystals().rglob("*.cif"))[:4]

        def write(place: Path) -> None:
            place.mkdir()
            for path in found:
                (place / path.name).write_bytes(path.read_bytes())
            with (place / "id_prop.csv").open("w", newline="") as stream:
                csv.writer(stream).writerows([path.name, number / 10] for number, path in enumerate(found))

        return self._once("structures", write)

    def conditions(self) -> Path:
        """Two small HDMAP experiments."""
        small = {
            "image_size": "32x96", "max_epochs": 1, "figures": False, "source_domain": "domain_A",
            "target_domains": ["domain_B"], "coreset_sampling_ratio": 0.01,
        }  # fmt: skip
        content = [{"name": f"small_{i}", "description": "small", "config": small | {"seed": i}} for i in range(2)]
        return self._once(
            "conditions.json", lambda place: place.write_text(json.dumps({"experiment_conditions": content}))
        )

    def cache(self) -> Path:
        """A feature cache with some rows."""
        from scripts.cache_features import main

        words = ["--backbone", "demo-clip", "--dataset", "mvtec", "--data-path", str(self.images()), "--obj", "grid"]
        return self._once("cache", lambda place: main([*words, "--cache-dir", str(place)]))

    def weights(self) -> Path:
        """A weight file of float32 tensors."""
        import torch

        return self._once(
            "w.pt", lambda place: torch.save({"a": torch.linspace(0, 1, 7), "b": torch.ones(2, 2)}, place)
        )

    def jobs(self) -> Path:
        """A file of commands."""
        return self._once("jobs.txt", lambda place: place.write_text("echo one\necho two\n"))

    def alphas(self, count: int) -> Path:
        """What 1.extract_alpha_final.py writes of `count` crystals."""
        from tests.support.programs import load_script

        words = ["--checkpoint", self.crystal(), "--n-samples", str(count), "--output"]
        main = load_script("scripts/crystal/1.extract_alpha_final.py").main
        return self._once(f"alphas{count}.npz", lambda place: main([*words, str(place)]))

    def official(self) -> Path:
        """The crystals with the official split."""

        def write(place: Path) -> None:
            from anomaly_lib.systems.crystal.data.dataset import read_table
            from anomaly_lib.systems.crystal.data.demo import write_crystal_demo

            write_crystal_demo(place, count=30)
            prop = "formation_energy_peratom"
            table = read_table(place, "jarvis", prop)
            names = [row.id for row in table.rows]
            parts = {"train": names[:20], "val": names[20:25], "test": names[25:]}
            assert table.folder is not None
            (table.folder / "official_split.json").write_text(json.dumps(parts))

        return self._once("official", write)

    def experiments(self, program: str, options: dict[str, Any]) -> Path:
        """The results of one HDMAP experiment."""
        from tests.support.programs import load_script
        from tests.support.walking import words_of

        main = load_script(program).main
        return self._once("experiments", lambda place: main(words_of({**options, "log_dir": str(place)})))

    def sweep(self) -> Path:
        """Checkpoints of PromptAD in the document's tree: two of image level, one of pixel level."""
        import train_cls
        import train_seg

        def write(place: Path) -> None:
            common = ["--dataset", "mvtec", "--data-path", str(self.images()), "--obj", "grid", "--epochs", "1"]
            tiny = [
                "--backbone",
                "tiny-clip",
                "--weights",
                "random",
                "--no-figures",
                "--resolution",
                "32",
                "--cache",
                "ram",
            ]
            for main, task, k in ((train_cls.main, "cls", 1), (train_cls.main, "cls", 2), (train_seg.main, "seg", 1)):
                target = place / "mvtec" / f"k_{k}" / "grid" / f"{task}_checkpoint.pth"
                assert main([*common, *tiny, "--shot", str(k), "--save-path", str(target)]) == 0

        return self._once("sweep", write)

    def released(self, name: str) -> Path:
        """A checkpoint of PromptAD's authors of that name: two images, a memory 64 wide."""
        import torch

        rows = {f"feature_gallery{index}": torch.rand(450, 64).half() for index in (1, 2)}
        return self._once(name, lambda place: torch.save({**rows, "text_features": torch.rand(2, 32).half()}, place))

    def paper_run(self) -> Path:
        """A PromptAD checkpoint with what the original's programs expect in it."""
        return Path(self.checkpoint("promptad", "-paper", protocol="paper", select="last", reader_resize=64))

    def gates(self) -> Path:
        """Two gate experiments, `a` of image and pixel level, `b` of image level with k = 2."""
        from scripts.promptad.run_gate_experiment import main

        def write(place: Path) -> None:
            words = ["--checkpoint-dir", str(self.sweep()), "--data-path", str(self.images()), "--no-figures"]
            assert main([*words, "--output-dir", str(place), "--branch", "a"]) == 0
            assert (
                main(
                    [
                        *words,
                        "--output-dir",
                        str(place),
                        "--branch",
                        "b",
                        "--modes",
                        "max",
                        "harmonic",
                        "mean",
                        "--shot",
                        "1",
                    ]
                )
                == 0
            )

        return self._once("gates", write)

    def four_classes(self) -> Path:
        """Four small classes of the demo data."""
        from anomaly_lib.data.demo.items import write_demo

        names = ["woven", "brushed_metal", "grid", "capsule"]
        return self._once(
            "four", lambda place: write_demo(place, categories=names, size=64, train=4, test_good=3, per_defect=1)
        )

    def page(self, begin: str, end: str) -> Path:
        """A page with a part that a script renews."""
        return self._once(f"{len(begin)}.md", lambda place: place.write_text(f"# Page\n\n{begin}\n{end}\n"))

    def runs(self) -> Path:
        """A folder with one finished run, `one`."""

        def write(place: Path) -> None:
            SYSTEMS["video_ae"].train(SYSTEMS["video_ae"].tiny(output_dir=str(place / "one")))

        return self._once("runs", write)

    def crystal_run(self, seed: int = 123) -> Path:
        """The folder of a crystal model with text after two layers."""
        counts = {"n_train": None, "n_val": None, "n_test": None, "middle_fusion_layers": [1, 2]}
        return self.run("crystal", str(seed), data_path=str(self.crystals()), seed=seed, **counts)

    def crystal(self, seed: int = 123) -> str:
        """Its checkpoint."""
        return str(self.crystal_run(seed) / "best_model.pt")

    def original_crystal(self) -> Path:
        """A checkpoint of the original crystal program, without its configuration."""
        import torch

        from tests.support.crystal_originals import sage, trained

        return self._once("theirs.pt", lambda place: torch.save({"model": trained(sage())}, place))

    def original_settings(self) -> Path:
        """A configuration of that program, with dropouts of its own."""
        from tests.support.crystal_originals import SAGE_SETTINGS

        return self._once("theirs.json", lambda place: place.write_text(json.dumps(SAGE_SETTINGS)))

    def quad(self, seed: int = 0) -> str:
        """A V4 checkpoint with a few welds of each class."""
        return self.checkpoint("weld_supcon", str(seed), seed=seed, demo_good=6, demo_defects=2, epochs=1)

    def pixel_level(self) -> str:
        """A PromptAD checkpoint with maps."""
        data = {"dataset": "mvtec", "data_path": str(self.images()), "obj": "grid"}
        return self.checkpoint("promptad", "seg", **data, shot=1, task="seg")

    def pictures(self) -> list[str]:
        """Three pictures."""
        return [str(path) for path in sorted((self.images() / "grid" / "test").rglob("*.png"))[:3]]

    def anomalib(self) -> Path:
        """anomalib's checkpoint of a narrow DRAEM."""
        import torch

        from anomaly_lib.models.detectors.anomalib_keys import to_anomalib

        def write(place: Path) -> None:
            narrow = {"repair_width": 4, "segment_width": 4, "image_size": [32], "epochs": 1}
            detector = SYSTEMS.load(self.checkpoint("detectors", "narrow", model="draem", **narrow))
            torch.save({"state_dict": to_anomalib(detector.model)}, place)

        return self._once("theirs.ckpt", write)

    def real(self) -> Path:
        """What $ANOMALY_LIB_DATA holds: a weight file and categories, here of drawn pictures."""

        def write(place: Path) -> None:
            import torch
            import torchvision

            (place / "weights").mkdir(parents=True)
            torch.manual_seed(0)
            torch.save(torchvision.models.resnet18().state_dict(), place / "weights" / "resnet18.pth")
            (place / "set").symlink_to(self.images(), target_is_directory=True)

        return self._once("real", write)
