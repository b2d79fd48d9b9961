"""The published layout with real JARVIS crystals (needs $ANOMALY_LIB_DATA)."""

import gzip
import json
import tarfile
from pathlib import Path

import pytest

from anomaly_lib.systems.crystal.data.dataset import read_table, split_from_file
from anomaly_lib.systems.crystal.data.text import keep_levels, normalize_text
from anomaly_lib.systems.crystal.options import Args
from anomaly_lib.systems.crystal.train import train

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import os

    root = os.environ.get("ANOMALY_LIB_DATA")
    archive = Path(root or "") / "crystal" / "jarvis_mini_dataset.tar.xz"
    if not root or not archive.is_file():
        pytest.skip("set $ANOMALY_LIB_DATA")
    folder = tmp_path_factory.mktemp("jarvis")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "dataset"


def test_official_split_and_sizes(dataset: Path) -> None:
    for prop, sizes in {"fe": (739, 105, 96), "bulk_modulus": (700, 95, 86), "mbj_bandgap": (452, 67, 49)}.items():
        table = read_table(dataset, "jarvis", prop)
        assert table.folder is not None
        split = split_from_file(table.folder / "official_split.json", table.rows)
        assert (len(split.train), len(split.val), len(split.test)) == sizes


def test_one_epoch_beats_the_mean(dataset: Path, tmp_path: Path) -> None:
    args = Args(
        data_path=str(dataset), property="formation_energy_peratom", split_file="official", epochs=2, batch_size=32,
        hidden_features=16, alignn_layers=1, gcn_layers=1, learning_rate=5e-3, cache="ram", device="cpu",
        output_dir=str(tmp_path), use_middle_fusion=True, middle_fusion_layers=[0],
    )  # fmt: skip
    metrics = train(args).metrics
    assert metrics["mean_predictor_test_mae"] == pytest.approx(0.43, abs=0.01)
    assert metrics["test_mae"] < 0.9 * metrics["mean_predictor_test_mae"]


def test_real_descriptions_normalise_to_ascii_mostly_and_split_into_levels(real_data: Path) -> None:
    with gzip.open(real_data / "crystal" / "jarvis_mini.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["description"] for line in lines]
    for text in texts:
        normal = normalize_text(text)
        assert "Å" not in normal
        assert set(normal) - {chr(i) for i in range(32, 127)} <= {"°", "\n"}
        assert len(keep_levels(text, ("global", "semi-global"))) <= len(text)
        assert "crystallizes" in keep_levels(text, ("global",))


def test_character_table_equals_the_published_file(real_data: Path) -> None:
    from anomaly_lib.systems.crystal.data.text import _character_table

    path = real_data / "crystal" / "matscibert_vocab_mappings.txt"
    published = {line[0]: line[2:] for line in path.read_text(encoding="utf-8").strip().split("\n")}
    assert _character_table() == published
