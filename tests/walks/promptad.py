"""Sweeps, gate experiments and studies of PromptAD."""

from tests.support.making import Made
from tests.support.walking import Walk
from tests.walks.registry import ASKS_OTHERS, RECORDED, SPEED, walk_of


@walk_of("scripts/promptad/run_gate_experiment.py")
def gate(made: Made) -> Walk:
    return Walk(
        {"checkpoint_dir": str(made.sweep()), "data_path": str(made.images()), "figures": False},
        {
            "dataset": ({}, ["visa"]),
            "obj": ({}, ["woven"]),
            "shot": ({}, [2]),
            "task": ({}, ["seg"]),
            "modes": ({}, ["min"]),
        },
        {"fresh": "what has been measured before: tests/e2e/test_promptad_gate.py"},
    )


@walk_of("scripts/promptad/compare_baselines.py")
def compare(made: Made) -> Walk:
    return Walk(
        {"first": "gates/a", "second": "gates/b"},
        {"first": ({}, "gates/b"), "second": ({}, "gates/a"), "mode": ({}, "max")},
        files={"gates": made.gates()},
    )


@walk_of("scripts/promptad/compare_fusions.py")
def fusions(made: Made) -> Walk:
    flags = "--backbone tiny-clip --weights random --no-figures --resolution 32 --cache ram --lr 0.5"
    small = {"datasets": ["mvtec"], "data_path": str(made.images()), "classes": ["grid"], "tasks": ["cls"]}
    return Walk(
        {**small, "epochs": 2, "train_flags": flags, "output_dir": "out"},
        {
            "datasets": ({}, ["visa"]),
            "classes": ({}, ["woven"]),
            "tasks": ({}, ["seg"]),
            "k_shots": ({}, [2]),
            "seeds": ({}, [7]),
            "epochs": ({}, 1),
            "train_flags": ({}, flags.replace("32", "16")),
            "fusions": ({}, ["max", "mean"]),
            "mode": ({}, "mean"),
        },
    )


@walk_of("scripts/promptad/convert_checkpoint.py")
def convert(made: Made) -> Walk:
    files = {name: made.released(name) for name in ("CLS-Seed_3-bolt-check_point.pt", "SEG-Seed_2-nut-check_point.pt")}
    first, second = files
    return Walk(
        {"source": first, "backbone": "tiny-clip"},
        {
            "source": ({}, second),
            "to": ({"source": "ours.pt", "backbone": None}, "original"),
            "task": ({}, "seg"),
            "backbone": ({}, "demo-clip"),
            "shot": ({}, 3),
        },
        files={**files, "ours.pt": made.paper_run()},
    )


@walk_of("scripts/promptad/train_harmonic.py")
def sweep(_: Made) -> Walk:
    return Walk(
        {"dry_run": True},
        {"datasets": ({}, ["mvtec"]), "root_dir": ({}, "there")},
        {
            "parallel": SPEED,
            "retries": "of runs that fail: tests/unit/engine/test_sweep.py",
            "launcher": ASKS_OTHERS,
            "dry_run": "it trains for an hour: tests/e2e/test_promptad_sweep.py",
        },
    )


@walk_of("scripts/promptad/study_options.py")
def study(_: Made) -> Walk:
    small = {"classes": ["grid"], "tasks": ["cls"], "shot": 1, "epochs": 0, "resolution": 16, "backbone": "tiny-clip"}
    return Walk(
        {**small, "halves": ["demo"], "results": "rows.json", "output_dir": "out"},
        {
            "classes": ({}, ["woven"]),
            "tasks": ({}, ["seg"]),
            "backbone": ({}, "demo-clip"),
            "image_size": ({}, [32]),
            "epochs": ({}, 1),
        },
        {
            "categories": "of the real half: $ANOMALY_LIB_DATA",
            "halves": "real: $ANOMALY_LIB_DATA",
            "write_docs": RECORDED,
        },
    )
