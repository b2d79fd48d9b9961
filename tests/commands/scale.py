"""What makes a command of a page one of seconds: flags that stand behind its own, so that they win."""

import os
import shlex
from pathlib import Path

CLIP = "--backbone tiny-clip --weights random --cache ram --epochs 1 --no-figures"
WELDS = "--d-model 16 --sensor-hidden 16 --video-frames 2 --image-size 32 --views 2 --audio-frames 32 --video-size 32"
TINY_WELDS = (
    "--video-backbone tiny-vjepa2 --audio-backbone tiny-ast --image-backbone tiny-dinov3 --video-weights random "
    "--audio-weights random --image-weights random"
)
QUAD = "--video-frames 4 --video-size 32 --image-size 32 --views 2 --hidden-dim 16 --sensor-dim 16 --sensor-layers 1"
LADDER = f"{QUAD} --demo-train 3 --demo-good 2 --demo-defects 1 --batch-size 12 --epochs 1 --k 1 --seeds 0"
# Flags by program; of those with two entries the second goes with the built-in data only.
FLAGS: dict[str, tuple[str, ...]] = {
    "train_cls.py": (f"{CLIP} --resolution 64 --image-size 64",),
    "train_seg.py": (f"{CLIP} --resolution 64 --image-size 64",),
    "train_sowa.py": (f"{CLIP} --image-size 64 --feature-map-idx 0 1 2 3 --window-size 4 --select last",),
    "train_causal_film.py": (
        f"{WELDS} {TINY_WELDS} --epochs 2 --no-figures",
        "--demo-train 8 --demo-good 2 --demo-defects 1",
    ),
    "train_video_ae.py": (
        "--backbone tiny-dinov2 --weights random --video-frames 2 --video-size 28 --epochs 1",
        "--demo-train 8 --demo-good 2 --demo-defects 1",
    ),
    "train_supcon.py": (
        f"{QUAD} {TINY_WELDS} --epochs 1 --no-figures",
        "--demo-train 3 --demo-good 2 --demo-defects 2",
    ),
    "run_baselines.py": (f"{LADDER} --baseline-epochs 1",),
    "run_extensions.py": (LADDER,),
    "train_with_cross_modal_attention.py": (
        "--epochs 2 --hidden_features 16 --batch_size 16 --cache ram --device cpu --figures False",
    ),
    "describe_structures.py": ("--describer template",),
    "compare_fusions.py": ("--classes toothbrush --k-shots 1 --seeds 1 --epochs 1",),
    "evaluate.py": ("--bootstrap 0 --no-figures",),
    "export.py": ("--repeats 1",),
    "check_gpu.py": ("--device cpu --seconds 20",),
}


def flags_of(argv: list[str]) -> list[str]:
    """The flags that are added to a command, of which `argv` is all behind ``python``."""
    program = Path(argv[0]).name
    flags = list(FLAGS.get(program, ()))
    if any(word.startswith(("--data-path", "--root_dir", "--resume")) for word in argv):
        flags = flags[:1]
    if program == "train_detector.py" or argv[1:3] == ["anomaly_lib", "fit"]:
        flags = [_detector(argv)]
    if program.startswith("multi_domain_hdmap") and "SMALL_CONDITIONS" in os.environ:
        flags = [] if "--get-experiment-count" in argv else [f"--conditions {os.environ['SMALL_CONDITIONS']}"]
    if program == "train_harmonic.py" and "--classes" not in argv:
        flags = ["--classes bottle candle --k-shots 1"]
    if program == "convert_checkpoint.py" and "--source" in argv and "--to" not in argv:
        flags = ["--backbone tiny-clip"]
    if program == "cache_features.py" and "--system" in argv:
        flags = ["--backbone demo-clip"]
    return shlex.split(" ".join(flags))


def _detector(argv: list[str]) -> str:
    """The small sizes that a detector's own entry names."""
    from anomaly_lib.models.detectors.registry import entry_of

    if "--plugin" in argv:
        return "--image-size 64 --no-figures"
    model = argv[argv.index("--model") + 1] if "--model" in argv else "patchcore"
    small = {"image_size": [64, 64], "figures": False, **entry_of(model).small}
    return " ".join(_flag(name, value) for name, value in small.items())


def _flag(name: str, value: object) -> str:
    words = [str(one) for one in value] if isinstance(value, list) else [str(value)]
    return f"--{name.replace('_', '-')} {shlex.join(words)}"
