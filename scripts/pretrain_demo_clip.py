"""Train the built-in demo CLIP from scratch on procedurally drawn, captioned pictures; about an hour on two CPU cores.

    python scripts/pretrain_demo_clip.py --output-dir runs/demo_clip  # draws, trains, writes the two files
    python scripts/evaluate_demo_clip.py --weights runs/demo_clip/demo_clip.safetensors    # (or --evaluate here)

Two stages with equally many patches a step: windows of 8 x 8 patches, then whole pictures.
Captions are contrasted with pictures, with single patches (is this spot damaged? how? which material?) and with
value-value patches. The same command continues an interrupted run.
"""

import ctypes
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_lib.backbones.clip import CLIP_MEAN, CLIP_STD
from anomaly_lib.backbones.clip_text import ClipText
from anomaly_lib.backbones.tokenizer import WordTokenizer
from anomaly_lib.config import Switch, arg, command
from anomaly_lib.data.procedural import captions
from anomaly_lib.data.procedural.batches import make_batch
from anomaly_lib.data.procedural.pool import GRID, Pool, draw_pool
from anomaly_lib.engine.checkpoint import TrainState, load_checkpoint, save_checkpoint
from anomaly_lib.engine.ema import Ema
from anomaly_lib.engine.optim import param_groups, step
from anomaly_lib.engine.schedule import make_schedule
from anomaly_lib.engine.seed import seed_everything
from anomaly_lib.metrics import auroc
from anomaly_lib.recipes.demo_clip.model import MODEL, build, encode_text, encode_windows
from anomaly_lib.recipes.demo_clip.objective import WEIGHTS, losses

STEPS = 4800
STAGES = ((8, 0.6), (GRID, 1.0))  # side of the window in patches until this share of the steps


@dataclass
class Options:
    """Everything that decides the weights."""

    output_dir: str = arg("runs/demo_clip", "folder for the pool of pictures, the checkpoint and the weights")
    pairs: int = arg(16000, "clean/damaged pairs drawn once", at_least=2)
    validation_pairs: int = arg(256, "pairs drawn with another seed, for the figures of the log", at_least=16)
    steps: int = arg(STEPS, "optimiser steps", at_least=1)
    learning_rate: float = arg(1.2e-3, "peak learning rate", at_least=0)
    weight_decay: float = arg(0.05, "decoupled weight decay", at_least=0)
    warmup: int = arg(200, "steps of linear warm-up", at_least=0)
    window_pairs: int = arg(64, "pairs a step in the first stage", at_least=4)
    ema_decay: float = arg(0.998, "decay of the average that is exported", at_least=0, at_most=1)
    precision: str = arg("bf16", "number format of matrix work", choices=["bf16", "fp32"])
    seed: int = arg(2026, "seed of the pictures and of training", at_least=0)
    threads: int = arg(2, "CPU threads", at_least=1)
    save_every: int = arg(200, "steps between checkpoints", at_least=1)
    evaluate: Switch = arg(False, "after training (or at once, if it is done) measure the weights on the demo data")


def train(options: Options) -> Path:
    """The whole run; continues from its own checkpoint."""
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    seed_everything(options.seed)
    folder = Path(options.output_dir)
    report = partial(print, flush=True)
    pool = draw_pool(folder, options.pairs, options.seed, workers=options.threads, report=report)
    held_out = draw_pool(folder, options.validation_pairs, options.seed + 1, workers=options.threads)
    clip, text, tokenizer = build()
    optimizer = torch.optim.AdamW(param_groups(clip, options.weight_decay), lr=options.learning_rate, betas=(0.9, 0.98))
    schedule = make_schedule(optimizer, "cosine", options.steps, warmup=options.warmup, min_lr=1e-5)
    ema = Ema(clip, options.ema_decay)
    state = TrainState(model=clip, optimizer=optimizer, scheduler=schedule, ema=ema, extra={"step": 0})
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.is_file():
        state.load_dict(load_checkpoint(checkpoint, system="demo-clip"))
        print(f"continuing after step {state.extra['step']}", flush=True)
    clip.train()
    began, running = time.monotonic(), dict.fromkeys(WEIGHTS, math.nan)
    for index in range(int(state.extra["step"]), options.steps):
        window = next(side for side, until in STAGES if index < until * options.steps)
        pairs = max(4, options.window_pairs * STAGES[0][0] ** 2 // window**2)
        torch.manual_seed(options.seed + index)  # a step's chance follows from its number, not from what ran before it
        batch = make_batch(pool, np.random.default_rng((options.seed, index)), pairs, window)
        parts = losses(clip, text, batch, value_value=index % 4 == 3, precision=options.precision)
        total = torch.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum()
        step(total, optimizer, clip=1.0)
        schedule.step()
        ema.update(clip)
        for name, part in parts.items():
            running[name] = part.item() if math.isnan(running[name]) else 0.98 * running[name] + 0.02 * part.item()
        state.extra["step"] = index + 1
        if index % 50 == 49:
            shown = "  ".join(f"{name} {value:.3f}" for name, value in running.items())
            print(f"step {index + 1}  {time.monotonic() - began:.0f}s  window {window}  {shown}", flush=True)
        if (index + 1) % options.save_every == 0 or index + 1 == options.steps:
            save_checkpoint(checkpoint, state.to_dict(), system="demo-clip")
            with ema.applied(clip):
                export(clip, tokenizer, folder)
                print(f"step {index + 1}  held-out procedural {json.dumps(validate(clip, text, held_out))}", flush=True)
            clip.train()
    return folder / "demo_clip.safetensors"


def keep_freed_memory() -> None:
    """Let glibc reuse large buffers: page faults on fresh ones cost two thirds of a step otherwise."""
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            thresholds = {-3: 1 << 30, -1: (1 << 31) - 1, -2: 1 << 28}  # for mmap, for trimming, padding
            for option, value in thresholds.items():
                mallopt(option, value)


@torch.no_grad()
def validate(clip: nn.Module, text: ClipText, pool: Pool) -> dict[str, float]:
    """Zero-shot AUROC of pictures and patches drawn with another seed."""
    clip.eval()
    prompts = encode_text(
        text, [state.format("object") for state in (*captions.NORMAL_STATES, *captions.DAMAGED_STATES)]
    )
    normal, damaged = prompts[: len(captions.NORMAL_STATES)].mean(0), prompts[len(captions.NORMAL_STATES) :].mean(0)
    scores: dict[str, list[Tensor]] = {"pooled": [], "patches": [], "vv": [], "label": []}
    for part in range(max(1, len(pool["masks"]) // 32)):
        batch = make_batch(pool, np.random.default_rng((1, part)), 16, GRID)
        out = encode_windows(clip, batch.images, batch.offsets, value_value=True)
        for name in ("pooled", "patches", "vv"):
            scores[name].append(out[name] @ (damaged - normal))
        scores["label"].append(batch.patches)
    pooled, patches, vv, label = (torch.cat(scores[name]) for name in ("pooled", "patches", "vv", "label"))
    image, known = (label == 1).any(1), label >= 0
    return {
        "image_pooled": round(float(auroc(pooled, image)), 4),
        "image_patch_max": round(float(auroc(patches.amax(1), image)), 4),
        "patch": round(float(auroc(patches[known], label[known])), 4),
        "patch_vv": round(float(auroc(vv[known], label[known])), 4),
    }


def export(clip: nn.Module, tokenizer: WordTokenizer, folder: Path) -> None:
    """fp16 weights under open_clip's own names, and the config that builds them."""
    from safetensors.torch import save_file

    words = captions.grammar_words()
    text_cfg = {**MODEL["text_cfg"], "vocab_size": tokenizer.vocab_size, "words": words}
    config = {"model_cfg": {**MODEL, "text_cfg": text_cfg}, "mean": CLIP_MEAN, "std": CLIP_STD}
    (folder / "demo_clip.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in clip.state_dict().items()}
    save_file(tensors, str(folder / "demo_clip.safetensors"))


def main(argv: list[str] | None = None) -> int:
    """Train what is left to train, then measure if asked to."""

    def body(options: Options) -> int:
        print(json.dumps(asdict(options)))
        weights = train(options)
        print(f"weights in {weights}")
        if not options.evaluate:
            return 0
        import evaluate_demo_clip

        return evaluate_demo_clip.main(["--weights", str(weights)])

    return command(Options, body, argv, prog="pretrain_demo_clip.py", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())
