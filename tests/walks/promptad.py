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


@walk_of("scripts/promptad/train_harmonic.py")
def sweep(_: Made) -> Walk:
    return Walk(
        {"dry_run": True},
        {"datasets": ({}, ["mvtec"])},
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
