"""Looking into trained crystal models."""

from tests.support.making import Made
from tests.support.walking import Walk
from tests.walks.registry import ASKS_OTHERS, SPEED, walk_of


@walk_of("scripts/crystal/1.extract_alpha_final.py")
def alphas(made: Made) -> Walk:
    one, other = made.crystal(), made.crystal(5)
    return Walk(
        {"checkpoint": one, "n_samples": 20},
        {"checkpoint": ({}, other), "layer": ({}, "layer_2"), "property": ({}, "bulk_modulus_kv")},
        {"batch_size": SPEED},
    )


@walk_of("scripts/crystal/2.create_paper_alpha_figures.py")
def alpha_figures(made: Made) -> Walk:
    return Walk(
        {"input": "alpha.npz", "min_atoms": 2},
        {"input": ({}, "beta.npz"), "min_atoms": ({}, 30)},
        files={"alpha.npz": made.alphas(60), "beta.npz": made.alphas(20)},
    )


@walk_of("scripts/crystal/compare_fusion_models.py")
def compare(made: Made) -> Walk:
    one, other = made.crystal(), made.crystal(5)
    return Walk(
        {"model1": one, "model2": other, "n_samples": 10},
        {"model1": ({}, other), "model2": ({}, one), "property": ({}, "bulk_modulus_kv")},
    )


@walk_of("scripts/crystal/diagnose_fusion_effectiveness.py")
def diagnose(made: Made) -> Walk:
    return Walk(
        {"checkpoint": made.crystal(), "n_samples": 10}, {"checkpoint": ({}, made.crystal(5))}, {"batch_size": SPEED}
    )


@walk_of("scripts/crystal/convert_checkpoint.py")
def convert(made: Made) -> Walk:
    return Walk(
        {"input": "theirs.pt", "output": "ours.pt"},
        {"input": ({}, "no.pt"), "config_file": ({}, "theirs.json")},
        files={"theirs.pt": made.original_crystal(), "theirs.json": made.original_settings()},
    )


@walk_of("scripts/crystal/monitor_text_scale.py")
def monitor(made: Made) -> Walk:
    return Walk(
        {"checkpoint_dir": "run"},
        {"checkpoint_pattern": ({}, "best_*.pt"), "output_plot": ({}, "other.png")},
        files={"run": made.crystal_run()},
    )


@walk_of("scripts/crystal/scale_checkpoint_weights.py")
def scale(made: Made) -> Walk:
    return Walk(
        {"input_checkpoint": made.crystal(), "output_checkpoint": "scaled.pt"},
        {"input_checkpoint": ({}, made.crystal(5))},
    )


@walk_of("scripts/crystal/describe_structures.py")
def describe(made: Made) -> Walk:
    return Walk(
        {"structures": "cifs", "targets": "cifs/id_prop.csv"},
        {"targets": ({}, "no.csv"), "structures": ({}, "nothing")},
        {"workers": SPEED, "describer": ASKS_OTHERS},
        files={"cifs": made.structures()},
    )


@walk_of("scripts/crystal/run_jarvis_mini.py")
def table(made: Made) -> Walk:
    return Walk(
        {"data_path": "data", "seeds": 1, "epochs": 1, "hidden_features": 8},
        {"properties": ({}, ["no_such"]), "weights": ({}, "no_such")},
        files={"data": made.official()},
    )
