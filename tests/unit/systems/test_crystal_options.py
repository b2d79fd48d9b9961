"""Every option of the published crystal program, as it was written there."""

from dataclasses import replace

import pytest

from anomaly_lib.config import parse
from anomaly_lib.systems.crystal.options import Args, model_config, resolve, without_effect

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
    "config_file": ("x.json", "x.json"),
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
    config = model_config(resolve(args), text_features=768)
    assert (config.middle_layers, config.gcn_layers, config.hidden_features) == ((2, 3), 3, 128)
    assert (config.middle_improved, config.middle_residual_scaling, config.middle_dynamic_gating) == (
        True,
        False,
        False,
    )
    assert (config.late_fusion, config.late_rank, config.late_output_dim) == ("tucker", 8, 32)
    assert (config.fine_grained_projection, config.cross_modal_bidirectional) == (False, False)


def test_flags_without_effect_are_named() -> None:
    args = replace(Args(), fusion_strategy="concat", middle_fusion_num_heads=4, mask_stopwords=True)
    assert sorted(without_effect(args)) == ["fusion_strategy", "mask_stopwords", "middle_fusion_num_heads"]
    assert without_effect(Args()) == []


@pytest.mark.parametrize("text", ["maybe", "2"])
def test_other_words_are_no_booleans(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        parse(Args, ["--use_cross_modal", text])
    assert leaving.value.code == 2
    assert f"--use-cross-modal: expected True or False, got '{text}'" in capsys.readouterr().err


def test_published_defaults_with_data() -> None:
    args = resolve(parse(Args, ["--root_dir", "dataset"]))
    assert (args.alignn_layers, args.gcn_layers, args.hidden_features, args.epochs, args.batch_size) == (
        4, 4, 256, 1000, 64,
    )  # fmt: skip
    assert (args.use_cross_modal, args.use_middle_fusion, args.late_fusion_type) == (True, False, "concat")
    assert (args.learning_rate, args.weight_decay, args.seed, args.split_seed) == (1e-3, 1e-5, 123, 123)
    paper = resolve(parse(Args, ["--root_dir", "dataset", "--protocol", "paper"]))
    assert (paper.graph_tolerance, paper.periodic_images, paper.standardize) == (0.0, "doubled", "False")
    assert paper.scale_learning_rate == paper.learning_rate
    assert args.scale_learning_rate == 20 * args.learning_rate
