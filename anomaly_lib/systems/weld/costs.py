"""What a weld training will take, in words, before it is paid: encoding, and the encoders' blocks that learn."""

import time
from collections.abc import Sequence
from math import prod

from torch import nn

from anomaly_lib.systems.weld.data.manifest import WeldRun
from anomaly_lib.systems.weld.features import WeldFeatures, run_key
from anomaly_lib.systems.weld.options import EncoderTrainingArgs

ACTIVATIONS = 16  # values that a block keeps for backward, for each value of its input
FOLD = 4  # a learning parameter, its gradient and AdamW's two moments
STATES = {"video": "video", "images": "state", "audio": "audio"}  # modality -> name of the stored state


def encoding_costs(features: WeldFeatures, runs: Sequence[WeldRun], *, batch_size: int) -> list[str]:
    """What encoding `runs` will take; the first run that is missing is encoded to know it."""
    if features.cache == "off" or not runs:
        return []
    keys, lines, seconds, size = {run_key(run): run for run in runs}, [], 0.0, 0
    for part, store in features.stores.items():
        missing = [keys[key] for key in store.missing(keys)]
        started = time.monotonic()
        features.fill(part, missing[:1], 1)
        left = max(0, len(missing) - 1)
        assert store.layout is not None  # it holds a row now
        seconds += left * (time.monotonic() - started)
        size += store.layout.row_bytes
        if left:
            place = str(store.folder) if store.on_disk else "memory"
            lines.append(
                f"{part}: {left} runs to encode, {in_bytes(store.layout.row_bytes)} each, "
                f"{in_bytes(left * store.layout.row_bytes)} in {place}"
            )
    if lines:
        lines.append(
            f"about {in_time(seconds)} of encoding; a batch of {batch_size} reads {in_bytes(batch_size * size)}"
        )
    return lines


def learning_words(
    args: EncoderTrainingArgs, features: WeldFeatures, tops: nn.ModuleDict | None, *, batch_size: int
) -> list[str]:
    """One line for each encoder that learns: which blocks, how many parameters, and the memory of a step."""
    lines = []
    for part, top in (tops or {}).items():
        learning = sum(p.numel() for p in top.parameters() if p.requires_grad)
        first, count = features.encoders.cut[part].first, args.encoder_blocks
        name = features.encoders.nets[part].name
        how = f"LoRA of rank {args.encoder_rank} in the last" if args.encoder_training == "lora" else "the last"
        layout = features.stores[part].layout
        room = ""
        if layout is not None:
            values = batch_size * prod(layout.field(STATES[part]).shape)
            kept = count + ACTIVATIONS if args.encoder_recompute else count * ACTIVATIONS
            room = f", activations of a batch about {in_bytes(4 * values * kept)}"
        lines.append(
            f"{part}: {how} {count} of {first + count} blocks of {name} learn: {learning:,} parameters "
            f"receive gradients at {args.encoder_lr:g}; with their optimiser {in_bytes(4 * FOLD * learning)}{room}"
        )
    return lines


def in_time(seconds: float) -> str:
    """``7 minutes``."""
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} s"


def in_bytes(size: int) -> str:
    """``13.6 MB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
