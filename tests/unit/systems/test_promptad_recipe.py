"""PromptAD's support handling: views, pasted defects, leave-one-out, which list of shots is taken."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomaly_lib.data.base import Item
from anomaly_lib.errors import UserError
from anomaly_lib.models.promptad.model import PromptAD, visual_score
from anomaly_lib.models.promptad.prompts import PromptLearner
from anomaly_lib.models.promptad.scores import ImageFeatures, ScoreSettings, concatenate
from anomaly_lib.systems.promptad.analysis import averages, compare
from anomaly_lib.systems.promptad.data import _choose, open_task, synthetic_anomalies, truth_of, with_views
from anomaly_lib.systems.promptad.eval import fit_support, image_scores, left_out_branches
from anomaly_lib.systems.promptad.gate import GateArgs, find_checkpoints
from anomaly_lib.systems.promptad.options import Args, SegArgs, resolve


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
    with pytest.raises(UserError, match="choose one of grid, woven"):
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
    paper = resolve(Args(protocol="paper", test_color="rgb"))
    assert (paper.test_color, paper.pairing, paper.select, paper.reader_resize) == (
        "rgb",
        "modulo",
        "best-on-test",
        1024,
    )
    clean = resolve(SegArgs())
    assert (clean.memory_tap, clean.select, clean.task, clean.n_pro) == ("block_out", "last", "seg", 1)
    with pytest.raises(UserError, match="--memory-layers"):
        resolve(Args(memory_layers=[2, 2]))


class _Text:
    """A text tower that answers fixed features."""

    width = 4

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[1, 2, 3]] * len(texts))

    def end_of_text(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.full((len(ids),), 2)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.ones(*ids.shape, 4)

    def encode_tree(self, embeddings: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return embeddings[:1].expand(len(_[2]), -1)


def test_leave_one_out_never_sees_the_image_itself() -> None:
    learner = PromptLearner(_Text(), class_text="x", states=["bad {}"], n_pro=1, n_pro_ab=1)
    model = PromptAD(learner, stored_logit_scale=torch.tensor(1.0), joint_dim=4, memory_shape=[(9, 6)])
    taps = F.normalize(torch.randn(3, 3, 6), dim=-1)
    support = ImageFeatures([taps], (1, 3), (1, 3), F.normalize(torch.randn(3, 4), dim=-1), None)
    model.remember(support.gallery_rows())
    settings = ScoreSettings(task="cls", image_max="grid", fusion="max")
    found = left_out_branches(model, support, None, settings)
    for n in range(3):
        others = torch.cat([taps[m] for m in range(3) if m != n])
        want, _ = visual_score([taps[[n]]], [others])
        torch.testing.assert_close(found.visual[n], want.max())
    assert float(found.visual.min()) > 1e-3
    fitted = fit_support(settings, found, "quantile")
    assert set(fitted.calibration) == {"textual", "visual"}
    assert fitted.references["visual"].shape == (3,)
    assert image_scores(found, fitted).shape == (3,)
    alone = left_out_branches(model, support[[0]], support[[1, 2]], settings)
    assert alone.visual.shape == (2,)
    one_a_class = left_out_branches(model, support, support, settings)  # views equal to their images: no distance
    torch.testing.assert_close(one_a_class.visual, torch.zeros(3), atol=1e-6, rtol=0)
    assert len(concatenate([support, support[[0]]])) == 4


def test_comparison_joins_on_all_four_keys() -> None:
    def row(k: int, auroc: float, mode: str = "harmonic") -> dict[str, object]:
        return {"dataset": "d", "class": "c", "k_shot": k, "task": "cls", "mode": mode, "auroc": auroc}

    found = compare([row(1, 80.0), row(2, 90.0), row(4, 1.0), row(1, 0.0, "max")], [row(1, 85.0), row(2, 89.0)])
    assert [line["improvement"] for line in found.table.rows] == [5.0, -1.0]
    assert "1 without a partner" in found.summary[0]
    with pytest.raises(UserError, match="share no"):
        compare([row(1, 1.0)], [row(2, 1.0)])
    table = averages([row(1, 80.0), row(1, 70.0), row(2, 60.0)])
    assert [line["harmonic"] for line in table.rows] == [75.0, 60.0]


def test_gate_needs_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--checkpoint-dir"):
        find_checkpoints(GateArgs())
    folder = tmp_path / "tree" / "mvtec" / "k_4" / "screw"
    folder.mkdir(parents=True)
    (folder / "seg_checkpoint.pth").touch()
    found = find_checkpoints(GateArgs(checkpoint_dir=str(tmp_path / "tree")))
    assert [(one.dataset, one.class_name, one.k, one.task) for one in found] == [("mvtec", "screw", 4, "seg")]
    with pytest.raises(UserError, match="1 checkpoints, none"):
        find_checkpoints(GateArgs(checkpoint_dir=str(tmp_path / "tree"), shot=[1]))
