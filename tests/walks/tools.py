"""The commands that look around, and what turns one file into another."""

from tests.support.making import Made
from tests.support.walking import Walk
from tests.walks.registry import ASKS_OTHERS, ASKS_THE_NETWORK, DAMAGED, SPEED, walk_of


@walk_of("python -m anomaly_lib list")
@walk_of("python -m anomaly_lib info")
def without_options(_: Made) -> Walk:
    return Walk({})


@walk_of("python -m anomaly_lib check")
def check(_: Made) -> Walk:
    return Walk({"system": "promptad"}, {"system": ({}, "video_ae")})


@walk_of("python -m anomaly_lib demo")
def demo(_: Made) -> Walk:
    return Walk({"system": "crystal"}, {"system": ({}, "hdmap")})


@walk_of("python -m anomaly_lib cache")
def cache(made: Made) -> Walk:
    return Walk({"cache_dir": "cache"}, {"cache_dir": ({}, "other")}, files={"cache": made.cache()})


@walk_of("scripts/cache_features.py")
def cache_features(made: Made) -> Walk:
    data = {"dataset": "mvtec", "data_path": str(made.images()), "obj": "grid", "split": "test"}
    return Walk(
        {"cache_dir": "cache", "backbone": "demo-clip", **data},
        {
            "options": ({"system": "sowa"}, "--layers-dtype fp32"),
            "split": ({}, "train"),
            "obj": ({}, "woven"),
            "dataset": ({}, "meta"),
            "layers": ({}, ["1"]),
            "dtype": ({}, "fp16"),
            "precision": ({}, "bf16"),
            "image_size": ({}, [64]),
            "resize": ({}, "pad"),
        },
        {"batch_size": SPEED, "num_workers": SPEED, "on_error": DAMAGED, "download": ASKS_THE_NETWORK},
    )


@walk_of("scripts/convert_weights.py")
def convert_weights(made: Made) -> Walk:
    files = {"w.pt": made.weights(), "v.pt": made.weights()}
    return Walk({"source": "w.pt"}, {"source": ({}, "v.pt"), "dtype": ({}, "fp16")}, files=files)


@walk_of("scripts/sowa/make_meta.py")
def make_meta(made: Made) -> Walk:
    return Walk({"dataset": "mvtec", "data_path": "data"}, {"dataset": ({}, "dagm")}, files={"data": made.images()})


@walk_of("scripts/sweep.py")
def sweep(made: Made) -> Walk:
    return Walk(
        {"command": "echo {x} {y}", "grid": "x=1,2 y=3"},
        {
            "jobs": ({"command": None, "grid": None}, "jobs.txt"),
            "grid": ({}, "x=1 y=3"),
            "expect": ({}, "nothing_{x}"),
            "run_dir": ({}, "run_{x}"),
            "command": ({}, "echo {y} {x}"),
            "retries": ({"command": "false {x}", "grid": "x=1"}, 1),
            "gpus": ({"dry_run": True}, "0,1"),
        },
        {
            "parallel": SPEED,
            "launcher": ASKS_OTHERS,
            "ray_address": ASKS_OTHERS,
            "cpus_per_job": ASKS_OTHERS,
            "gpus_per_job": ASKS_OTHERS,
        },
        files={"jobs.txt": made.jobs()},
    )


@walk_of("scripts/check_gpu.py")
def check_gpu(_: Made) -> Walk:
    return Walk(
        {"device": "cpu", "seconds": 1.0, "systems": ["detectors"]},
        {"device": ({}, "cuda"), "systems": ({}, ["video_ae"])},
        {"seconds": SPEED},
    )


@walk_of("python -m anomaly_lib completion")
def completion(_: Made) -> Walk:
    return Walk({}, {"shell": ({}, "zsh")})


@walk_of("python -m anomaly_lib new-detector")
def new_detector(_: Made) -> Walk:
    return Walk({}, {"output": ({}, "there")})
