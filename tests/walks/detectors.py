"""The programs over detectors."""

import socket
from pathlib import Path

from tests.support.making import Made
from tests.support.walking import Walk
from tests.walks.registry import DAMAGED, SPEED, walk_of


@walk_of("evaluate.py")
def evaluate(made: Made) -> Walk:
    averaged = made.checkpoint("causal_film")
    return Walk(
        {"checkpoint": made.pixel_level(), "bootstrap": 10, "figures": False, "output_dir": "out"},
        {
            "checkpoint": ({}, averaged),
            "parameters": ({"checkpoint": averaged}, "raw"),
            "compare": ({}, [averaged]),
            "support_quantile": ({"policy": "support-quantile"}, 0.1),
            "false_alarms": ({"checkpoint": averaged}, 0.4),
        },
        {"batch_size": SPEED, "on_error": DAMAGED},
    )


@walk_of("python -m anomaly_lib predict")
def predict(made: Made) -> Walk:
    pictures = made.pictures()
    return Walk(
        {"checkpoint": made.checkpoint("detectors", "padim", model="padim"), "input": pictures},
        {"checkpoint": ({}, made.pixel_level()), "input": ({}, pictures[:1]), "false_alarms": ({}, 0.4)},
        {"batch_size": SPEED, "on_error": DAMAGED, "watch": "it does not end: tests/e2e/test_evaluate_predict.py"},
    )


@walk_of("python -m anomaly_lib serve")
def serve(made: Made) -> Walk:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    padim = made.checkpoint("detectors", "padim", model="padim")
    return Walk(
        {"checkpoint": [padim], "port": port, "idle_seconds": 0.3, "output_dir": "out"},
        {"checkpoint": ({}, [made.pixel_level()]), "false_alarms": ({}, 0.4), "token": ({}, "open-sesame")},
        {
            "upload_mib": "how much it takes: tests/unit/serving/test_addresses.py",
            "idle_seconds": "when it leaves: tests/e2e/test_serve.py",
        },
    )


@walk_of("scripts/export.py")
def export(made: Made) -> Walk:
    padim = made.checkpoint("detectors", "padim", model="padim")
    return Walk(
        {"checkpoint": padim, "repeats": 1, "format": "torch", "output_dir": "out"},
        {
            "checkpoint": ({}, made.checkpoint("causal_film")),
            "tolerance": ({"format": "onnx"}, 0.0),
            "precision": ({"format": "onnx"}, "fp16"),
            "calibration": ({"format": "onnx", "precision": "int8"}, str(made.images())),
            "false_alarms": ({}, 0.4),
        },
        {"repeats": "how well the latency is known, which no two runs share"},
    )


SIZE = "another size is refused, in words of tensors"


@walk_of("scripts/convert_detector.py")
def convert(made: Made) -> Walk:
    return Walk(
        {"source": "theirs.ckpt", "model": "draem", "image_size": 32, "repair_width": 4, "segment_width": 4},
        {
            "source": ({}, "no.ckpt"),
            "to": ({}, "anomalib"),
            "model": ({"image_size": 128}, "draem_sevnet"),
            "image_size": ({}, 64),
            "score": ({}, "mean21-max"),
            "focal_alpha": ({}, 0.5),
        },
        {"repair_width": SIZE, "segment_width": SIZE, "channels": SIZE},
        files={"theirs.ckpt": made.anomalib()},
    )


@walk_of("python -m anomaly_lib calibrate")
def calibrate(made: Made) -> Walk:
    padim, pictures = Path(made.checkpoint("detectors", "padim", model="padim")), made.pictures()
    return Walk(
        {"checkpoint": "one.pt", "normal": pictures},
        {
            "checkpoint": ({}, "two.pt"),
            "normal": ({}, pictures[:2]),
            "output": ({}, "three.pt"),
            "false_alarms": ({}, 0.4),
        },
        {"batch_size": SPEED, "on_error": DAMAGED},
        files={"one.pt": padim, "two.pt": Path(made.pixel_level())},
    )
