"""Every option of the published crystal program, as it was written there."""

import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from anomaly_lib.command_line import parse
from anomaly_lib.config import to_plain
from anomaly_lib.models.crystal.config import CrystalFusionConfig
from anomaly_lib.systems.crystal.options import Args, tiny
from anomaly_lib.systems.crystal.published import property_folder, with_resume, without_meaning

# flag: (what a command line says, what it must mean)
PUBLISHED = {
    "root_dir": ("../dataset/", "../dataset/"),
    "dataset": ("jarvis", "jarvis"),
    "property": ("hse_bandgap-2", "hse_bandgap-2"),
    "use_preprocessed": ("False", False),
    "preprocessed_dir": ("kept", "kept"),
    "train_ratio": ("0.7", 0.7),
    "val_ratio": ("0.2", 0.2),
    "test_ratio": ("0.1", 0.1),
    "n_train": ("70", 70),
    "n_val": ("20", 20),
    "n_test": ("10", 10),
    "batch_size": ("32", 32),
    "epochs": ("500", 500),
    "learning_rate": ("0.0005", 0.0005),
    "weight_decay": ("1e-5", 1e-5),
    "warmup_steps": ("2000", 2000),
    "alignn_layers": ("4", 4),
    "gcn_layers": ("3", 3),
    "hidden_features": ("128", 128),
    "graph_dropout": ("0.15", 0.15),
    "use_cross_modal": ("TRUE", True),
    "cross_modal_hidden_dim": ("128", 128),
    "cross_modal_num_heads": ("8", 8),
    "cross_modal_dropout": ("0.2", 0.2),
    "late_fusion_type": ("tucker", "tucker"),
    "late_fusion_rank": ("8", 8),
    "late_fusion_output_dim": ("32", 32),
    "use_middle_fusion": ("y", True),
    "middle_fusion_layers": ("2,3", [2, 3]),
    "middle_fusion_hidden_dim": ("64", 64),
    "middle_fusion_num_heads": ("4", 4),
    "middle_fusion_dropout": ("0.35", 0.35),
    "middle_fusion_use_gate_norm": ("1", True),
    "middle_fusion_use_learnable_scale": ("t", True),
    "middle_fusion_initial_scale": ("12.0", 12.0),
    "use_improved_middle_fusion": ("yes", True),
    "middle_fusion_use_residual_scaling": ("no", False),
    "middle_fusion_use_dynamic_gating": ("f", False),
    "middle_fusion_initial_node_scale": ("2.0", 2.0),
    "use_fine_grained_attention": ("True", True),
    "fine_grained_hidden_dim": ("64", 64),
    "fine_grained_num_heads": ("4", 4),
    "fine_grained_dropout": ("0.2", 0.2),
    "fine_grained_use_projection": ("n", False),
    "mask_stopwords": ("1", True),
    "remove_stopwords": ("0", False),
    "stopwords_dir": ("words", "words"),
    "use_contrastive": ("True", True),
    "contrastive_weight": ("0.2", 0.2),
    "contrastive_temperature": ("0.07", 0.07),
    "cross_modal_attention_type": ("unidirectional", "unidirectional"),
    "fusion_strategy": ("average", "average"),
    "gated_fusion_type": ("single_gate", "single_gate"),
    "gated_fusion_hidden_dim": ("64", 64),
    "gated_fusion_dropout": ("0.2", 0.2),
    "output_dir": ("./output/", "./output/"),
    "resume": ("0", "0"),
    "random_seed": ("7", 7),
    "num_workers": ("2", 2),
    "early_stopping_patience": ("30", 30),
    "classification": ("1", True),
    "classification_threshold": ("0.4", 0.4),
}
OUR_NAMES = {"root_dir": "data_path", "random_seed": "seed"}


def test_every_published_flag_means_what_it_says() -> None:
    words = [word for flag, (text, _) in PUBLISHED.items() for word in (f"--{flag}", text)]
    args = parse(Args, words)
    for flag, (_, want) in PUBLISHED.items():
        assert getattr(args, OUR_NAMES.get(flag, flag)) == want, flag


WITHOUT_MEANING = {
    "middle_fusion_num_heads": 4, "fusion_strategy": "concat", "gated_fusion_type": "attention",
    "gated_fusion_hidden_dim": 64, "gated_fusion_dropout": 0.2, "mask_stopwords": True, "remove_stopwords": True,
    "stopwords_dir": "words",
}  # fmt: skip


def test_flags_without_meaning_are_named() -> None:
    assert without_meaning(Args()) == without_meaning(tiny()) == without_meaning(Args(data_path="dataset")) == []
    assert without_meaning(Args(protocol="paper", data_path="dataset", classification=True)) == []
    assert without_meaning(Args(alignn_layers=4)) == []  # middle_fusion_layers then is 2, as published
    for name, value in WITHOUT_MEANING.items():
        assert without_meaning(Args(**{name: value})) == [f"{name}={value} has no meaning here"]


SHIPPED = Path(__file__).resolve().parents[3] / "scripts" / "crystal" / "config_improved_fusion.json"


@pytest.mark.parametrize("flag", ["--config_file", "--config-file", "--config"])
def test_the_documents_configuration_file_is_read(flag: str) -> None:
    """D2: their names, the settings that are fixed here, layers as a text; flags win."""
    args = parse(Args, [flag, str(SHIPPED), "--root_dir", "dataset", "--middle_fusion_layers", "2,3"])
    want = Args(
        data_path="dataset", use_middle_fusion=True, middle_fusion_use_gate_norm=True, use_cross_modal=True,
        middle_fusion_use_learnable_scale=True, middle_fusion_initial_scale=12.0, middle_fusion_layers=[2, 3],
    )  # fmt: skip
    assert args == want
    assert without_meaning(args) == []
    assert parse(Args, [f"{flag}={SHIPPED}"]).hidden_features == 256  # also on the built-in crystals


def test_a_whole_configuration_of_theirs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As their runs leave it: a nested model, their data set's name, their folder, nulls, ratios."""
    theirs = {
        "version": "112bbed", "dataset": "user_data", "target": "target", "atom_features": "cgcnn", "id_tag": "jid",
        "neighbor_strategy": "k-nearest", "random_seed": 7, "classification_threshold": None, "n_train": None,
        "train_ratio": 0.7, "val_ratio": 0.2, "test_ratio": 0.1, "epochs": 500, "batch_size": 32,
        "n_early_stopping": 30, "weight_decay": 1e-05, "learning_rate": 0.002, "filename": "sample",
        "warmup_steps": 2000, "criterion": "mse",
        "optimizer": "adamw", "scheduler": "onecycle", "use_canonize": True, "cutoff": 8.0, "max_neighbors": 12,
        "output_dir": "/their/folder/", "num_workers": 4, "standard_scalar_and_pca": False, "model": {
            "name": "alignn", "alignn_layers": 3, "atom_input_features": 92, "use_middle_fusion": True,
            "middle_fusion_layers": "1,2", "use_cross_modal_attention": False, "use_contrastive_loss": True,
            "contrastive_loss_weight": 0.3, "link": "identity", "classification": False,
        },
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(theirs))
    args = parse(Args, ["--config", str(path), "--root_dir", "dataset"])
    want = Args(
        data_path="dataset", seed=7, train_ratio=0.7, val_ratio=0.2, epochs=500, batch_size=32, learning_rate=0.002,
        early_stopping_patience=30, alignn_layers=3, use_middle_fusion=True, middle_fusion_layers=[1, 2],
        use_cross_modal=False, use_contrastive=True, contrastive_weight=0.3,
    )  # fmt: skip
    assert args == want
    path.write_text(json.dumps({**theirs, "classification_threshold": 0.4, "dataset": "class"}))
    args = parse(Args, ["--config_file", str(path), "--root_dir", "dataset"])
    assert (args.classification, args.classification_threshold, args.dataset) == (True, 0.4, "class")
    for changed, said in (
        ({"neighbor_strategy": "voronoi"}, "neighbor_strategy=voronoi: only k-nearest is here"),
        ({"model": {"name": "alignn", "link": "log"}}, "link=log: only identity is here"),
        ({"criterion": "l1"}, "criterion=l1: only mse or bce is here"),
        ({"model": {"name": "alignn", "gated_attention_num_heads": 4}}, "unknown option --gated-attention-num-heads"),
        ({"model": {"name": "alignn", "middle_fusion_layers": "two"}}, "--middle-fusion-layers"),
    ):
        path.write_text(json.dumps({**theirs, **changed}))
        with pytest.raises(SystemExit):
            parse(Args, ["--config_file", str(path), "--root_dir", "dataset"])
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_a_run_repeats_from_its_own_configuration(tmp_path: Path) -> None:
    args = Args(data_path="dataset", use_middle_fusion=True, epochs=7)
    sizes = {f.name: getattr(args, f.name) for f in fields(CrystalFusionConfig)}
    (tmp_path / "config.json").write_text(json.dumps({**to_plain(args), "model": sizes}))
    assert parse(Args, ["--config_file", str(tmp_path / "config.json")]) == args


ALONE = {
    "middle_fusion_hidden_dim": (64, "use_middle_fusion=True"),
    "middle_fusion_layers": ([0], "use_middle_fusion=True"),
    "middle_fusion_initial_scale": (20.0, "middle_fusion_use_learnable_scale=True"),
    "middle_fusion_initial_node_scale": (2.0, "use_improved_middle_fusion=True"),
    "fine_grained_dropout": (0.3, "use_fine_grained_attention=True"),
    "late_fusion_rank": (3, "late_fusion_type=bilinear|tucker"),
    "late_fusion_output_dim": (3, "late_fusion_type=gated|bilinear|adaptive|tucker"),
    "contrastive_weight": (0.3, "use_contrastive=True"),
    "classification_threshold": (0.3, "classification=True"),
    "preprocessed_dir": ("kept", "use_preprocessed=True"),
    "use_preprocessed": (True, "data_path=..."),
}
NO_DROPOUT_LEFT = {"use_cross_modal": False, "cross_modal_dropout": 0.3}


@pytest.mark.parametrize("name", list(ALONE))
def test_published_flags_that_need_others_are_taken_and_named(name: str) -> None:
    """The published program takes them as well, and its users' scripts give them all."""
    value, need = ALONE[name]
    assert any(
        line.startswith(f"{name}=") and " has no meaning here without " in line and line.endswith(need)
        for line in without_meaning(Args(**{name: value}))
    )


def test_the_exchange_and_late_fusion_share_one_dropout() -> None:
    (line,) = without_meaning(Args(**NO_DROPOUT_LEFT))
    assert line == "cross_modal_dropout=0.3 has no meaning here without use_cross_modal=True"
    assert without_meaning(Args(**NO_DROPOUT_LEFT, late_fusion_type="gated")) == []


def test_flags_that_meet_what_they_need_are_not_named() -> None:
    args = Args(
        data_path="dataset", use_middle_fusion=True, middle_fusion_use_learnable_scale=True, late_fusion_type="tucker",
        middle_fusion_initial_scale=12.0, middle_fusion_layers=[2, 3], late_fusion_rank=8, use_contrastive=True,
        contrastive_weight=0.3, n_train=20, cross_modal_num_heads=8,
    )  # fmt: skip
    assert without_meaning(args) == []
    assert without_meaning(replace(args, protocol="paper", warmup_steps=5)) == [
        "warmup_steps=5 has no meaning here without protocol=clean"
    ]
    lines = without_meaning(Args(data_path="dataset", modality="graph", cross_modal_num_heads=8, hidden_features=32))
    assert lines == ["cross_modal_num_heads=8 has no meaning here without modality=both"]
    named = without_meaning(Args(data_path="dataset", n_train=20, train_ratio=0.5, split_file="official"))
    assert [line.split()[0] for line in named] == ["n_train=20", "train_ratio=0.5"]


OWN = {  # options that are not the published program's are refused where they do nothing
    "split_seed": ({"split_seed": 3, "split_file": "official"}, "without split_file=None"),
    "compare": ({"compare": True, "modality": "graph"}, "without modality=both"),
    "text_levels": ({"text_levels": "global", "modality": "graph"}, "without modality=both|text"),
    "learned_elements": ({"learned_elements": True, "modality": "text"}, "without modality=both|graph"),
    "graph_tolerance": ({"graph_tolerance": 0.1, "modality": "text"}, "without modality=both|graph"),
    "cross_modal_tokens": ({"cross_modal_tokens": True, "use_cross_modal": False}, "without use_cross_modal=True"),
    "dataset": ({"dataset": "mp"}, "without data_path=..."),
    "standardize": ({"standardize": True, "classification": True}, "without classification=False"),
    "scale_learning_rate": ({"scale_learning_rate": 0.1}, "no scale is learned"),
    "weights": ({"weights": "file"}, "hashed-text has none"),
    "text_max_tokens": ({"text_max_tokens": 64}, "hashed-text counts words of whole texts"),
}


@pytest.mark.parametrize("name", list(OWN))
def test_own_options_without_effect_are_refused(name: str) -> None:
    options, said = OWN[name]
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        Args(**options)
    assert str(refused.value).startswith(f"{name}={options[name]}: ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epochs": -1}, "epochs=-1: must be at least 0"),
        ({"late_fusion_type": "gate"}, "did you mean gated?"),
        ({"select": "best"}, "choose from last, val, best-on-test"),
        ({"learning_rate": float("nan")}, "learning_rate=nan: must be a finite number"),
        ({"train_ratio": 0.9, "val_ratio": 0.2}, "add up to more than 1"),
        ({"cross_modal_hidden_dim": 30}, "cross_modal_hidden_dim=30: is not a multiple of cross_modal_num_heads=4"),
        ({"use_middle_fusion": True, "middle_fusion_layers": [2]}, "alignn_layers=2 has layers 0 to 1"),
        ({"modality": "text", "use_contrastive": True}, "use_contrastive=True: compares graph and text"),
        ({"batch_size": None}, "batch_size=None: takes a whole number"),
    ],
)
def test_options_are_checked_where_they_are_made(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Args(**options)


def test_published_folder_and_resume(tmp_path: Path) -> None:
    """Results lie in <output_dir>/<property>/; --resume 1 goes on if there is something to go on from."""
    args = parse(Args, ["--output_dir", str(tmp_path), "--property", "fe", "--resume", "1"])
    folder = property_folder(args)
    assert folder == tmp_path / "formation_energy_peratom"
    assert property_folder(Args()) is None
    assert with_resume(args, folder / "checkpoint.pt").resume is None
    folder.mkdir()
    (folder / "checkpoint.pt").touch()
    assert with_resume(args, folder / "checkpoint.pt").resume == "latest"
    for word, meant in {"0": None, "False": None, None: None, "best": "best", "x/y.pt": "x/y.pt"}.items():
        assert with_resume(replace(args, resume=word), folder / "checkpoint.pt").resume == meant


def test_options_come_without_torch() -> None:
    names = "anomaly_lib.systems.crystal.options, anomaly_lib.systems.crystal.published, anomaly_lib.models.crystal"
    code = f"import sys, {names}; print(sorted({{'torch', 'numpy', 'ase'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("text", ["maybe", "2"])
def test_other_words_are_no_booleans(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        parse(Args, ["--use_cross_modal", text])
    assert leaving.value.code == 2
    assert f"--use-cross-modal: expected True or False, got '{text}'" in capsys.readouterr().err


def test_published_defaults_with_data() -> None:
    args = parse(Args, ["--root_dir", "dataset"])
    assert args == Args(data_path="dataset")
    assert (args.alignn_layers, args.gcn_layers, args.hidden_features, args.epochs, args.batch_size) == (
        4, 4, 256, 1000, 64,
    )  # fmt: skip
    assert (args.use_cross_modal, args.use_middle_fusion, args.late_fusion_type) == (True, False, "concat")
    assert (args.learning_rate, args.weight_decay, args.seed, args.split_seed) == (1e-3, 1e-5, 123, 123)
    assert (args.middle_fusion_layers, args.compare, args.standardize) == ([2], False, True)
    paper = parse(Args, ["--root_dir", "dataset", "--protocol", "paper"])
    assert (paper.graph_tolerance, paper.periodic_images, paper.standardize) == (0.0, "doubled", False)
    own = parse(Args, ["--root_dir", "dataset", "--protocol", "paper", "--graph_tolerance", "0.01"])
    assert (own.graph_tolerance, own.periodic_images) == (0.01, "doubled")


def test_small_sizes_on_the_built_in_crystals() -> None:
    args = Args()
    assert args == parse(Args, [])
    assert (args.alignn_layers, args.gcn_layers, args.hidden_features, args.epochs, args.batch_size) == (
        2, 2, 64, 30, 32,
    )  # fmt: skip
    assert (args.middle_fusion_layers, args.compare) == ([1], True)
    assert Args(alignn_layers=4).middle_fusion_layers == [2]
    assert Args(modality="graph").compare is False
    assert (Args(hidden_features=32).hidden_features, Args(epochs=3).epochs) == (32, 3)
