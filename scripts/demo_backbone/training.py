"""The training of the built-in demo CLIP: the loop, what is measured on the way, and the two files it writes."""

import ctypes
import json
import math
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_lib.backbones.clip import CLIP_MEAN, CLIP_STD
from anomaly_lib.backbones.clip_text import ClipText
from anomaly_lib.backbones.tokenizer import WordTokenizer
from anomaly_lib.backbones.weights import load_into, read_state_dict
from anomaly_lib.engine.checkpoint import TrainState, load_checkpoint, save_checkpoint
from anomaly_lib.engine.ema import Ema
from anomaly_lib.engine.optim import step
from anomaly_lib.engine.schedule import make_schedule
from anomaly_lib.engine.seed import seed_everything
from anomaly_lib.metrics import auroc
from scripts.demo_backbone.model import MODEL, build, encode_text, encode_windows
from scripts.demo_backbone.muon import Muon, muon_groups
from scripts.demo_backbone.objective import (
    MEMORY_SHARE,
    MEMORY_TAPS,
    TEXT_SHARE,
    WEIGHTS,
    MemoryScale,
    losses,
    memory_distance,
    strongest,
    weighted,
)
from scripts.demo_backbone.pictures import captions
from scripts.demo_backbone.pictures.batches import make_batch
from scripts.demo_backbone.pictures.pictures import PIECES, SURFACE
from scripts.demo_backbone.pictures.pool import GRID, Pool, draw_pool
from scripts.demo_backbone.train import TrainArgs

# Side of the window in patches, products a step, until this share of the steps.
STAGES = ((8, 32, 0.36), (12, 14, 0.62), (GRID, 8, 1.0))


def train(options: TrainArgs) -> Path:
    """The whole run; continues from its own checkpoint."""
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    seed_everything(options.seed)
    folder = Path(options.output_dir)
    report = partial(print, flush=True)
    clip, text, tokenizer = build()
    if options.start is not None:
        load_into(clip, read_state_dict(Path(options.start)), source=options.start)
    draw = partial(draw_pool, folder, staged=options.staged, workers=options.threads)
    pool = draw(options.products, options.seed, report=report)
    held_out = draw(options.validation_products, options.seed + 1)
    memory = MemoryScale()
    both = nn.ModuleDict({"clip": clip, "memory": memory})
    groups = muon_groups(both, clip.visual.transformer, options.weight_decay)
    optimizer = Muon([{"lr": options.learning_rate} | groups[0], *groups[1:]], lr=options.other_rate)
    schedule = make_schedule(optimizer, "cosine", options.steps, warmup=options.warmup)
    ema = Ema(clip, options.ema_decay)
    state = TrainState(model=both, optimizer=optimizer, scheduler=schedule, ema=ema, extra={"step": 0})
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.is_file():
        state.load_dict(load_checkpoint(checkpoint, system="demo-clip"))
        print(f"continuing after step {state.extra['step']}", flush=True)
    clip.train()
    began, running = time.monotonic(), dict.fromkeys(WEIGHTS, math.nan)
    for index in range(int(state.extra["step"]), options.steps):
        window, products = next((side, many) for side, many, until in STAGES if index < until * options.steps)
        torch.manual_seed(options.seed + index)  # a step's chance follows from its number, not from what ran before it
        batch = make_batch(pool, np.random.default_rng((options.seed, index)), min(products, options.products), window)
        parts = losses(clip, text, memory, batch, value_value=index % 4 == 3, precision=options.precision)
        total = weighted(parts, whole=window == GRID)
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
    """AUROC on products drawn with another seed: from text alone, and by distance to one normal piece."""
    clip.eval()
    states = (*captions.NORMAL_STATES, *captions.DAMAGED_STATES)
    prompts = encode_text(text, [state.format("object") for state in states])
    normal, damaged = prompts[: len(captions.NORMAL_STATES)].mean(0), prompts[len(captions.NORMAL_STATES) :].mean(0)
    found: dict[str, list[Tensor]] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for part in range(max(1, len(pool["masks"]) // 16)):
            batch = make_batch(pool, np.random.default_rng((1, part)), 16)
            out = encode_windows(clip, batch.images, batch.offsets, value_value=True, taps=MEMORY_TAPS)
            rows = {name: x.unflatten(0, (16, PIECES)) for name, x in out.items()}
            scores = {name: rows[name] @ (damaged - normal) for name in ("pooled", "patches", "vv")}
            scores |= {f"memory {tap}": memory_distance(rows[f"layer.{tap}"]) for tap in MEMORY_TAPS}
            clean = torch.zeros_like(batch.patches)
            scores["patch label"] = torch.stack([clean, clean, batch.patches], 1)
            scores |= {"compared": batch.compared, "thing": batch.object != SURFACE}
            for name, value in scores.items():
                found.setdefault(name, []).append(value)
    return summary({name: torch.cat(parts) for name, parts in found.items()})


def summary(found: dict[str, Tensor]) -> dict[str, float]:
    """AUROC of patches; of pictures also how often a damaged one scores above a normal one of the same product.

    Damage that only a comparison shows is asked of the memory alone.
    """
    label = found["patch label"]  # [C, PIECES, N]
    visible = (label[:, -1] == 1).any(1)
    alone = visible & ~found["compared"]
    result = {}
    for name, scores in found.items():
        if name in ("patch label", "compared", "thing"):
            continue
        memory = name.startswith("memory")
        keep = visible if memory else alone
        scores, patch, thing = scores[keep], label[keep][:, -scores.shape[1] :], found["thing"][keep]
        if scores.ndim == 3:
            result[f"{name} patch"] = float(auroc(scores[patch >= 0], patch[patch >= 0]))
            scores = strongest(scores, MEMORY_SHARE if memory else TEXT_SHARE)
        above = (scores[:, -1:] > scores[:, :-1]).float().mean(1)  # [C']
        result[f"{name} image"] = float(auroc(scores, (patch == 1).any(2)))
        result |= {f"{name} pair": float(above.mean()), f"{name} pair of things": float(above[thing].mean())}
    return {name: round(value, 4) for name, value in result.items()}


def export(clip: nn.Module, tokenizer: WordTokenizer, folder: Path) -> None:
    """fp16 weights under open_clip's own names, and the config that builds them."""
    from safetensors.torch import save_file

    words = captions.grammar_words()
    text_cfg = {**MODEL["text_cfg"], "vocab_size": tokenizer.vocab_size, "words": words}
    config = {"model_cfg": {**MODEL, "text_cfg": text_cfg}, "mean": CLIP_MEAN, "std": CLIP_STD}
    (folder / "demo_clip.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in clip.state_dict().items()}
    save_file(tensors, str(folder / "demo_clip.safetensors"))
