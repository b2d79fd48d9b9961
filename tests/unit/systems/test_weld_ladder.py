"""The ladder's table and scores, on numbers small enough to check by hand."""

from types import SimpleNamespace

import pytest
import torch

from anomaly_lib.models.weld.baselines import TokenClasses
from anomaly_lib.models.weld.supcon_quad import SensorEncoder
from anomaly_lib.systems.weld.data.manifest import CLASSES
from anomaly_lib.systems.weld.features import run_key
from scripts.weld.studies.baselines import Fitted, Pool, combine, fit, mid_frozen, prepare, standardised, weighted
from scripts.weld.studies.ladder import row_of, table
from scripts.weld.studies.options import LadderArgs
from scripts.weld.studies.single import four, late, mid, one_class, sensors_alone, tuned


def pool_of(classes: list[int], present: list[bool] | None = None) -> Pool:
    runs = [SimpleNamespace(label=int(c > 0), class_label=c, class_name=CLASSES[c]) for c in classes]
    there = torch.tensor([[True, True, p, True] for p in present or [True] * len(classes)])
    splits = ("train", "val", "test")
    return Pool(None, dict.fromkeys(splits, runs), dict.fromkeys(splits, there), {}, {})  # type: ignore[arg-type]


def test_scores_are_standardised_by_good_runs_and_an_absent_modality_says_nothing() -> None:
    pool = pool_of([0, 0, 5, 0], present=[True, True, True, False])
    scores = {split: torch.tensor([1.0, 3.0, 8.0, 100.0]) for split in ("train", "val", "test")}
    assert standardised(pool, scores, "audio")["test"].tolist() == [-1.0, 1.0, 6.0, 0.0]
    assert standardised(pool, scores, "video")["test"][3] > 1


def test_fusion_weights_are_searched_on_validation_only() -> None:
    pool = pool_of([0, 0, 4, 4])
    good, bad = torch.tensor([0.0, 1.0, 5.0, 6.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    right = {"train": good, "val": good, "test": bad}
    wrong = {"train": good, "val": bad, "test": good}
    fused = combine(pool, [right, wrong], ("audio", "video"), 7)
    assert fused.note == "audio 1.00, video 0.00" or fused.scores["val"][2:].min() > fused.scores["val"][:2].max()
    assert fused.parameters == 7


def test_a_row_and_the_table_by_hand() -> None:
    pool = pool_of([0, 0, 4, 9])
    scores = {split: torch.tensor([0.1, 0.3, 0.9, 0.2]) for split in ("train", "val", "test")}
    fitted = Fitted(scores, 1234, classes=torch.tensor([0, 0, 4, 0]))
    row = row_of(pool, fitted, model="D", seed=0, seconds=2.0, peak_mb=10.0)
    assert row["auroc"] == 0.75
    assert row["per_defect"] == {CLASSES[4]: 1.0, CLASSES[9]: 0.5}
    assert row["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2, abs=1e-4)  # Youden: everything from 0.9 on is a defect
    base = {**row, "model": "A", "auroc": 0.5, "class_f1": None}
    lines = table([base, row, {**row, "seed": 1, "auroc": 0.85}])
    assert lines[2].startswith("| A | 0.500 ± 0.000 ")
    assert "| - | +0.000 | 1,234 | 2.0 | 10 |" in lines[2]
    assert lines[3].startswith("| D | 0.800 ± 0.050 ")
    assert "+0.300" in lines[3]
    assert f"| {CLASSES[9]} | 0.500 ± 0.000 | 0.500 ± 0.000 |" in lines


# -- baselines whose encoders learn -----------------------------------------------------------------------------------

SMALL = {
    "demo_train": 3, "demo_good": 2, "demo_defects": 1, "video_frames": 2, "video_size": 32, "image_size": [32],
    "views": 1, "sensor_dim": 16, "sensor_layers": 1, "sensor_steps": 16, "baseline_epochs": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def small() -> Pool:
    return prepare(LadderArgs(**SMALL))


def test_the_sensor_baseline_is_the_documents_transformer() -> None:
    encoder = SensorEncoder()
    layer = encoder.blocks.layers[0]
    assert (len(encoder.blocks.layers), layer.self_attn.num_heads, layer.linear1.out_features) == (4, 8, 1024)
    net = TokenClasses(256, encoder=encoder)
    assert sum(p.numel() for p in encoder.parameters()) == 3_161_344
    assert sum(p.numel() for p in net.parameters()) == 3_161_344 + 12 * 256 + 12


@pytest.mark.parametrize(("training", "learnt"), [("last", 8_608), ("lora", 2 * 2 * 32 * 8)])
def test_a_tuned_baseline_learns_its_last_block_and_a_head(small: Pool, training: str, learnt: int) -> None:
    small.below = None
    args = LadderArgs(**SMALL, tuned_training=training, tuned_lr=0.01)
    torch.manual_seed(0)
    found = tuned(small, args, "audio")
    assert found.parameters == learnt + 12 * 32 + 12
    assert small.below is not None
    keys = [run_key(run) for runs in small.runs.values() for run in runs]
    lacking = {part: len(store.missing(keys)) for part, store in small.below.stores.items()}
    assert lacking == {"video": 40, "images": 40, "audio": 0}  # of the other modalities nothing is encoded
    assert all((scores >= 0).all() and (scores <= 1).all() for scores in found.scores.values())
    torch.manual_seed(0)
    again = tuned(small, args, "audio").scores["test"]  # from the published blocks again
    assert torch.equal(again, found.scores["test"])


def test_the_blocks_act_beside_the_head(small: Pool) -> None:
    small.below, rows = None, []
    for rate in (0.0, 0.01):
        torch.manual_seed(0)
        rows.append(tuned(small, LadderArgs(**SMALL, tuned_lr=rate), "images").scores["test"])
    assert not torch.equal(rows[0], rows[1])


def test_a_run_without_the_modality_scores_the_share_of_defects(small: Pool) -> None:
    silent = {split: there.clone() for split, there in small.present.items()}
    silent["test"][0, 3] = False
    silent["train"][:2, 3] = False
    pool = Pool(small.features, small.runs, silent, small.pooled, small.clips, small.series)
    found = sensors_alone(pool, LadderArgs(**SMALL)).scores["test"]
    assert float(found[0]) == pytest.approx(11 / 14)  # of 3 good and 11 defective runs
    assert float(found[1]) != pytest.approx(11 / 14)


def test_late_fusion_weighs_probabilities_as_they_are(small: Pool) -> None:
    small.below = None
    found = late(small, LadderArgs(**SMALL))
    assert found.note.startswith("video ")
    assert found.classes is None
    assert all((scores >= 0).all() and (scores <= 1).all() for scores in found.scores.values())
    pool = pool_of([0, 0, 4, 4])
    column = {split: torch.tensor([0.1, 0.2, 0.9, 0.8]) for split in ("train", "val", "test")}
    fused = weighted(pool, [column, column], ("audio", "video"), 7)
    torch.testing.assert_close(fused.scores["test"], column["test"].double())


def test_mid_fusion_joins_what_the_four_learned(small: Pool) -> None:
    small.below, found = None, []
    for rate in (0.0, 0.05):
        found.append(mid(small, LadderArgs(**SMALL, tuned_lr=rate)))
    assert not torch.equal(found[0].scores["test"], found[1].scores["test"])  # what the blocks learn reaches the MLP
    parts, size = four(small, LadderArgs(**SMALL, tuned_lr=0.05))
    widths = {name: part.features["test"].shape[1] for name, part in parts.items()}
    assert widths == {"video": 32, "images": 32, "audio": 32, "sensors": 16}  # the Transformer's, not the raw levels
    total = sum(widths.values())
    assert found[1].parameters == size + 2 * total + 256 * (total + 1) + 12 * 257  # norms and the MLP
    rested = mid_frozen(small, LadderArgs(**SMALL))
    assert rested.parameters == 2 * 192 + 256 * 193 + 12 * 257  # 16 levels of 6 channels beside three mean tokens


def test_a_rate_of_its_own_under_the_one_cycle() -> None:
    torch.manual_seed(0)
    net = torch.nn.ModuleDict({"head": torch.nn.Linear(2, 1), "top": torch.nn.Linear(2, 2)})
    before = net["top"].weight.detach().clone()

    def loss(_: torch.Tensor) -> torch.Tensor:
        return net["head"](net["top"](torch.ones(1, 2))).square().sum()

    fit(net, loss, 4, epochs=2, batch_size=2, peak_lr=0.1, lr_of={"top.": 0.0})
    assert torch.equal(net["top"].weight, before)
    fit(net, loss, 4, epochs=2, batch_size=2, peak_lr=0.1, lr_of={"top.": 0.01})
    assert 0 < float((net["top"].weight.detach() - before).abs().max()) < 0.05


def test_one_class_learns_good_runs() -> None:
    torch.manual_seed(0)
    basis = torch.randn(3, 24)
    good, strange = torch.randn(64, 3) @ basis, torch.randn(64, 24) * 1.7
    head = one_class(good)
    assert float(head(strange).mean()) > 2 * float(head(good).mean())
