"""The checkpoints of PromptAD's authors as checkpoints of ours (scored as published, but on RGB images), and back."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from anomaly_lib.engine.checkpoint import FORMAT, Checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.models.promptad.released import IMAGE_SIZE, KEYS, as_released, is_released, read_released
from anomaly_lib.systems.promptad.options import ALL, Args


def adopt(
    content: Mapping[str, Any], path: Path, *, said: Mapping[str, Any] | None = None, **options: Any
) -> Checkpoint | None:
    """The file's content in the form of ours, or None when it is none of theirs.

    No support scores are in it, so there is no decision and no fusion that refers to them. `said`: what the file does
    not tell, for `read_released`; `options` of the run, e.g. where its data lie.
    """
    if not is_released(content):
        return None
    try:
        found = read_released(content, path.name, **(said or {}))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    args = Args(**{
        "protocol": "paper", "test_color": "rgb", "select": "last", "task": found.task, "obj": found.class_name,
        "seed": found.seed, "shot": found.shot, "backbone": found.backbone, "image_size": [IMAGE_SIZE], **options,
    })  # fmt: skip
    extra = {"class_name": found.class_name, "normal": None, "decision": None}
    content = {"format": FORMAT, "system": "promptad", "args": asdict(args), "model": found.tensors, "extra": extra}
    return Checkpoint(path, {**content, "epoch": 0, "history": []})


def to_original(checkpoint: Checkpoint) -> tuple[str, dict[str, Tensor]]:
    """The name the original's programs look for, and the tensors they read. The contexts have no place there.

    Refused is what its network would read wrongly: it compares with its own two taps and the stored temperature.
    """
    args, state = Args.from_saved(checkpoint.args), checkpoint["model"]
    if "decision" not in checkpoint.extra:
        raise UserError(f"{checkpoint.path}: this training is not finished; run its command again to continue it")
    lacking = [key for key in KEYS if key not in state]
    reasons = {
        "it has one model for all classes, the original one for each": args.obj == ALL,
        f"visual_backbone={args.visual_backbone} feeds its memory, the original's is CLIP": bool(args.visual_backbone),
        "the original remembers two layers": bool(lacking) or "feature_gallery3" in state,
        f"the original reads memory_tap=post_attn_next, this memory holds {args.memory_tap}; train with protocol=paper":
            args.memory_tap != "post_attn_next",
        "the original reads the stored temperature, this was trained with logit_scale=exp": args.logit_scale == "exp",
    }  # fmt: skip
    if wrong := [reason for reason, holds in reasons.items() if holds]:
        raise UserError(f"{checkpoint.path}: the original cannot use it: {wrong[0]}")
    name = f"{args.task.upper()}-Seed_{args.seed}-{checkpoint.extra['class_name']}-check_point.pt"
    return name, as_released(state)
