"""Weld data and studies of V4."""

from anomaly_lib.systems.weld.supcon.options import Args as QuadArgs
from scripts.weld.studies.options import INSTEAD
from tests.support.making import Made
from tests.support.walking import Walk
from tests.walks.registry import DAMAGED, SPEED, walk_of

SMALL = {
    "demo_train": 3, "demo_good": 2, "demo_defects": 1, "video_frames": 2, "video_size": 32, "image_size": [32],
    "views": 1, "hidden_dim": 16, "sensor_dim": 16, "sensor_layers": 1, "batch_size": 12, "epochs": 1, "k": 1,
    "seeds": [0], "results": "out",
}  # fmt: skip
OF_ONE_TRAINING = {name: ({}, None) for name in INSTEAD}


@walk_of("scripts/weld/check_labels.py")
def labels(made: Made) -> Walk:
    return Walk({}, {"data_path": ({}, "welds")}, files={"welds": made.welds()})


@walk_of("scripts/weld/resplit.py")
def resplit(made: Made) -> Walk:
    return Walk({"data_path": "welds"}, {"train_ratio": ({}, 0.5)}, files={"welds": made.welds()})


@walk_of("scripts/weld/evaluate_knn.py")
def neighbours(made: Made) -> Walk:
    v4, film = made.quad(), made.checkpoint("causal_film")
    return Walk(
        {"checkpoint": v4, "k": 1},
        {"checkpoint": ({}, film), "metric": ({}, "manhattan"), "k": ({}, 3)},
        {"batch_size": SPEED},
    )


@walk_of("scripts/weld/evaluate_fusion.py")
def fusion(made: Made) -> Walk:
    film, video = made.checkpoint("causal_film"), made.checkpoint("video_ae")
    return Walk(
        {"causal_checkpoint": film, "video_checkpoint": video, "output_dir": "out"},  # with every score
        {
            "causal_checkpoint": ({}, video),
            "video_checkpoint": ({}, film),
            "score_kind": ({}, "l1"),
            "checkpoints": ({"causal_checkpoint": None, "video_checkpoint": None}, [film, video]),
        },
        {"on_error": DAMAGED},
    )


@walk_of("scripts/weld/study_supcon.py")
def study(made: Made) -> Walk:
    return Walk(
        {"checkpoint": made.quad(), "passes": 2},
        {"checkpoint": ({}, made.checkpoint("causal_film")), "ensemble": ({}, [made.quad(7)])},
    )


@walk_of("scripts/weld/run_baselines.py")
def baselines(_: Made) -> Walk:
    with_a, with_tuned = {"models": ["A"]}, {"models": ["B-audio-tuned"]}
    return Walk(
        {**SMALL, "models": ["B-sensors"], "baseline_epochs": 2},
        {
            **OF_ONE_TRAINING,
            "seeds": ({}, [1]),
            "figures": ({"models": ["D"]}, True),
            "baseline_batch": ({}, 2),
            "spectrum_fft": (with_a, 256),
            "spectrum_frames": (with_a, 32),
            "audio_width": (with_a, 64),
            "video_window": (with_a, 2),
            "tuned_training": (with_tuned, "lora"),
            "tuned_blocks": (with_tuned, 2),
            "tuned_lr": (with_tuned, 0.01),
        },
        inherited=QuadArgs,
    )


@walk_of("scripts/weld/run_extensions.py")
def extensions(_: Made) -> Walk:
    return Walk(
        {**SMALL, "variants": ["plain"]},
        {
            **OF_ONE_TRAINING,
            "seeds": ({}, [1]),
            "variants": ({}, ["mixup"]),
            "passes": ({"variants": ["mc-dropout"]}, 3),
            "pruning": ({"variants": ["pruned"]}, 0.9),
        },
        inherited=QuadArgs,
    )


@walk_of("scripts/weld/demo_results.py")
def causal_film_table(_: Made) -> Walk:
    return Walk(
        {"seeds": [0], "variants": ["default"], "epochs": 1, "output": "out/results.json"},
        {"seeds": ({}, [1]), "variants": ({}, ["joint"])},
    )
