"""PromptAD's support handling: views, pasted defects, leave-one-out, which list of shots is taken."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomaly_lib.data.base import Item
from anomaly_lib.data.views import with_views
from anomaly_lib.errors import UserError
from anomaly_lib.models.promptad.model import PromptAD
from anomaly_lib.models.promptad.scores import ImageFeatures, Scoring, visual_score
from anomaly_lib.systems.promptad.analysis import averages
from anomaly_lib.systems.promptad.comparison import compare
from anomaly_lib.systems.promptad.data import _choose, open_task, synthetic_anomalies, truth_of
from anomaly_lib.systems.promptad.detector import PromptADDetector, decision_of
from anomaly_lib.systems.promptad.gate import find_checkpoints
from anomaly_lib.systems.promptad.options import Args, GateArgs, SegArgs, tiny


def picture(number: int = 0, label: int = 0, **more: object) -> Item:
    pixels = np.random.default_rng(number).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    return Item(Path(f"{number:03d}.png"), label, "bottle", "train", image=pixels, **more)  # type: ignore[arg-type]


def test_views_are_what_they_are_called() -> None:
    item = picture()
    assert with_views([item], "none") == []
    names = {str(view.path).partition("#")[2]: view.image for view in with_views([item], "all")}
    assert set(names) == {"mirrored", "upside_down", "turned90", "turned180", "turned270"}
    assert np.array_equal(names["turned180"], item.image[::-1, ::-1])
    assert np.array_equal(names["mirrored"][:, ::-1], item.image)
    assert names["turned90"].shape == (24, 20, 3)
    mild = with_views([item, picture(1)], "mild")
    assert len(mild) == 8
    assert all(view.label == 0 and not np.array_equal(view.image, item.image) for view in mild)


def test_pasted_defects_differ_inside_their_mask_only() -> None:
    made = synthetic_anomalies([picture(), picture(1)], 5, seed=3)
    again = synthetic_anomalies([picture(), picture(1)], 5, seed=3)
    assert len(made) == 10
    for one, other, source in zip(made, again, [picture()] * 5 + [picture(1)] * 5, strict=True):
        assert one.label == 1
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.image[~one.mask], source.image[~one.mask])
        assert not np.array_equal(one.image[one.mask], source.image[one.mask])
        assert 0 < one.mask.mean() < 0.3


def test_truth_of_a_defect_without_mask_is_unknown() -> None:
    from anomaly_lib.data.transforms import stretch_transform

    transform = stretch_transform(8, mean=(0, 0, 0), std=(1, 1, 1))
    good, bad = picture(), replace(picture(1, 1), mask=np.ones((20, 24), bool))
    labels, masks = truth_of([good, bad], transform, 10)
    assert labels.tolist() == [0, 1]
    assert masks.float().mean((1, 2)).tolist() == [0.0, 1.0]
    assert truth_of([good, replace(bad, mask=None)], transform, 10)[1] is None


def test_published_shots_are_taken_where_they_fit() -> None:
    many = [picture(n) for n in range(209)]
    args = Args(dataset="mvtec", shot=2)
    assert [item.path.stem for item in _choose(many, args).items] == ["101", "048"]
    assert _choose(many[:50], args).how == "seed 111"
    assert _choose(many, replace(args, shots="seed")).how == "seed 111"
    assert _choose(many, replace(args, dataset="demo")).how == "seed 111"
    assert _choose(many, replace(args, shot=3)).how == "seed 111"


def test_data_of_several_classes_need_a_choice(tmp_path: Path) -> None:
    from anomaly_lib.data.demo.items import write_demo

    write_demo(tmp_path, categories=["grid", "woven"], size=32, train=3, test_good=1, per_defect=1)
    args = Args(dataset="mvtec", data_path=str(tmp_path), shot=2)
    with pytest.raises(UserError, match="give obj= one of grid, woven"):
        open_task(args)
    task = open_task(replace(args, obj="all"))
    assert task.class_name == "all"
    assert [item.class_name for item in task.support] == ["grid", "grid", "woven", "woven"]


def test_broken_images_are_skipped_and_listed(tmp_path: Path) -> None:
    from anomaly_lib.data.demo.items import write_demo

    write_demo(tmp_path, categories=["grid"], size=32, train=3, test_good=2, per_defect=1)
    broken = tmp_path / "grid" / "test" / "good" / "000.png"
    broken.write_bytes(b"no image")
    args = Args(dataset="mvtec", data_path=str(tmp_path), shot=1, on_error="skip")
    task = open_task(args)
    assert [one["path"] for one in task.skipped] == [str(broken)]
    assert len(task.test) == 7


def test_protocol_fills_only_what_was_left_open() -> None:
    paper = Args(protocol="paper", test_color="rgb")
    assert (paper.test_color, paper.pairing, paper.select, paper.reader_resize) == (
        "rgb",
        "modulo",
        "best-on-test",
        1024,
    )
    assert [Args(protocol="paper", task=task).triplet_axis for task in ("cls", "seg")] == ["channel", "patch"]
    clean = SegArgs()
    assert (clean.memory_tap, clean.select, clean.task, clean.n_pro) == ("block_out", "last", "seg", 1)
    assert (Args(task="seg").n_pro, Args().n_pro, SegArgs(n_pro=3).n_pro) == (1, 3, 3)
    with pytest.raises(UserError, match="memory_layers"):
        Args(memory_layers=[2, 2])


def test_built_in_data_take_the_demo_clip_and_a_users_data_the_published_one() -> None:
    """B1: without --backbone the demo CLIP never reads a user's data."""
    assert (Args().backbone, Args().obj) == ("demo-clip", "brushed_metal")
    own = [Args(dataset="mvtec", data_path="parts"), Args(dataset="demo", data_path="parts"), Args(dataset="mvtec")]
    assert [args.backbone for args in own] == ["ViT-B-16-plus-240"] * 3
    assert [args.obj for args in own] == [None] * 3
    assert Args(weights="clip.pt").backbone == "ViT-B-16-plus-240"  # a weight file is never one of the demo CLIP
    assert Args(dataset="mvtec", data_path="parts", backbone="demo-clip").backbone == "demo-clip"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"sigma": 2.0}, "sigma=2.0: has no effect without task=seg"),
        ({"task": "seg", "image_max": "grid"}, "image_max=grid: has no effect without task=cls"),
        ({"fusion_weights": [1.0, 3.0]}, "fusion_weights=1.0 3.0: has no effect without fusion_mode=weighted"),
        ({"fusion_mode": "weighted", "fusion_weights": [1.0]}, "fusion_weights=1.0: takes 2 values"),
        ({"select": "val", "eval_every": 2}, "eval_every=2: has no effect without select=last"),
        ({"visual_weights": "vit.pth"}, "visual_weights=vit.pth: has no effect without visual_backbone="),
        ({"image_size": [1, 2, 3]}, "image_size=1 2 3: takes one or two numbers"),
        ({"root_dir": "r", "output_dir": "o"}, "root_dir=r"),
        ({"select": "best"}, "select=best: choose from last, val, best-on-test"),
    ],
)
def test_an_option_acts_or_is_refused(given: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError) as refused:
        Args(**given)
    assert str(refused.value).startswith(complaint)


def test_options_need_no_torch() -> None:
    code = "import sys, anomaly_lib.systems.promptad.options; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(("given", "size"), [([], (64, 64)), ([32], (32, 32)), ([32, 48], (32, 48))])
def test_image_size_takes_one_or_two_numbers(given: list[int], size: tuple[int, int]) -> None:
    """A15."""
    from anomaly_lib.systems.promptad.features import Towers

    for resize in (0, 128):
        towers = Towers(tiny(image_size=given, reader_resize=resize), torch.device("cpu"))
        assert towers.clip.image_size == size
        pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
        assert towers.transform(test=True)(pixels).shape == (3, *size)
        found = towers.encode_seen(lambda transform, pixels=pixels: transform(pixels)[None])
        assert found.grid == found.tap_grid == (size[0] // 16, size[1] // 16)
        assert found.tokens.shape[:2] == (1, size[0] * size[1] // 256)


def _supported(k: int = 3, **options: object) -> tuple[PromptAD, ImageFeatures]:
    model = PromptAD.from_name("tiny-clip", weights="random", class_name="x", **options)
    model.keep_text_features()
    taps = [F.normalize(torch.randn(k, 3, 64), dim=-1) for _ in model.towers.taps]
    pooled, tokens = (F.normalize(torch.randn(*shape), dim=-1) for shape in ((k, 32), (k, 3, 32)))
    support = ImageFeatures(taps, (1, 3), (1, 3), pooled, tokens)
    model.remember(support.gallery_rows())
    return model, support


def test_leave_one_out_never_sees_the_image_itself() -> None:
    model, support = _supported(image_max="grid", fusion_mode="max", calibration="quantile")
    found = model.left_out_branches(support)
    for n in range(3):
        others = [torch.cat([tap[m] for m in range(3) if m != n]) for tap in support.taps]
        want, _ = visual_score([tap[[n]] for tap in support.taps], others)
        torch.testing.assert_close(found.visual[n], want.max())
    assert float(found.visual.min()) > 1e-3
    fitted = Scoring(model.config, found)
    assert len(fitted.calibrations) == 2
    assert [len(reference) for reference in fitted.references] == [3, 3]
    assert fitted.image_scores(found).shape == (3,)
    alone = model.left_out_branches(support[[0]], support[[1, 2]])
    assert alone.visual.shape == (2,)
    one_a_class = model.left_out_branches(support, support)  # views equal to their images: no distance
    torch.testing.assert_close(one_a_class.visual, torch.zeros(3), atol=1e-6, rtol=0)
    assert len(ImageFeatures.concatenate([support, support[[0]]])) == 4


@pytest.mark.parametrize(("held", "sizes"), [(1, [1] * 7), (3, [1, 3, 3]), (2**20, [1, 6])])
def test_features_are_held_by_their_size(held: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones, e.g. those of many tiles, a few images at a time; what is found is the same."""
    model, features = _supported(k=7)
    asked = []

    def some(items: list[int], **_: object) -> ImageFeatures:
        asked.append(len(items))
        return features[items]

    detector = PromptADDetector.__new__(PromptADDetector)
    detector.model, detector.towers = model, SimpleNamespace(features=some)
    monkeypatch.setattr("anomaly_lib.systems.promptad.detector.HELD", held * features[[0]].size_in_bytes)
    found, wanted = detector.branches(list(range(7)), together=2), model.branches(features)
    assert asked == sizes
    torch.testing.assert_close(found.plain(), wanted.plain())


@pytest.mark.parametrize(
    ("shot", "rate", "source"),
    [
        (1, None, "above the largest of 4 scores of mild views of the support images, one a class, which stand in"),
        (
            4,
            0.2,
            "at most 20.00% false alarms, from 4 support images, each left out of the memory; 5.00% would",
        ),
    ],
)
def test_the_decision_is_what_left_out_support_images_promise(shot: int, rate: float | None, source: str) -> None:
    model, support = _supported(k=4, fusion_mode="max")
    assert decision_of(model, Args(shot=shot)) is None  # as for checkpoints of PromptAD's authors
    model.normal = model.left_out_branches(support)
    found = decision_of(model, Args(fusion_mode="max", shot=shot))
    scores = torch.maximum(model.normal.textual, model.normal.visual)
    assert found.threshold == np.nextafter(float(scores.max()), np.inf)
    assert list(found.normal) == scores.sort().values.tolist()
    assert found.source.startswith(source)
    assert (found.false_alarms, found.stand_ins, found.oracle) == (rate, shot == 1, False)
    assert len(found.maxima) == 4
    if shot > 1:
        half = decision_of(model, Args(fusion_mode="max", shot=shot, false_alarms=0.4))
        assert half.threshold == np.nextafter(float(scores.sort().values[2]), np.inf)


def test_comparison_joins_on_all_four_keys() -> None:
    def row(k: int, auroc: float, mode: str = "harmonic") -> dict[str, object]:
        return {"dataset": "d", "class": "c", "k_shot": k, "task": "cls", "mode": mode, "auroc": auroc}

    found = compare([row(1, 80.0), row(2, 90.0), row(4, 1.0), row(1, 0.0, "max")], [row(1, 85.0), row(2, 89.0)])
    assert [line["improvement"] for line in found.table.rows] == [5.0, -1.0]
    assert "1 without a partner" in found.summary[0]
    with pytest.raises(UserError, match="share no"):
        compare([row(1, 1.0)], [row(2, 1.0)])
    known = [row(1, 80.0) | {"epoch": 3, "contexts": "a"}, row(2, 80.0) | {"epoch": 3, "contexts": "a"},
             row(4, 80.0) | {"epoch": 3, "contexts": "a"}, row(8, 80.0)]  # fmt: skip
    other = [row(1, 80.0) | {"epoch": "3", "contexts": "a", "select": "last"},
             row(2, 81.0) | {"epoch": "2", "contexts": "b"}, row(4, 82.0) | {"epoch": "3", "contexts": "c"},
             row(8, 80.0)]  # fmt: skip
    found = compare(known, other)
    assert [line["differs"] for line in found.table.rows] == ["neither", "epoch", "contexts", "unknown"]
    assert not any("by construction" in line for line in found.summary)  # not all of them kept the last epoch
    last = [[{**line, "select": "last"} for line in rows[:1]] for rows in (known, other)]
    assert "by construction" in compare(*last).summary[-1]
    table = averages([row(1, 80.0), row(1, 70.0), row(2, 60.0)])
    assert [line["harmonic"] for line in table.rows] == [75.0, 60.0]


def test_gate_needs_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="checkpoint_dir="):
        find_checkpoints(GateArgs())
    folder = tmp_path / "tree" / "mvtec" / "k_4" / "screw"
    folder.mkdir(parents=True)
    (folder / "seg_checkpoint.pth").touch()
    found = find_checkpoints(GateArgs(checkpoint_dir=str(tmp_path / "tree")))
    assert [(one.dataset, one.class_name, one.k, one.task) for one in found] == [("mvtec", "screw", 4, "seg")]
    with pytest.raises(UserError, match="1 checkpoints, none"):
        find_checkpoints(GateArgs(checkpoint_dir=str(tmp_path / "tree"), shot=[1]))
