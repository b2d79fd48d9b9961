"""Train the built-in demo CLIP from scratch on procedurally drawn, captioned pictures; about an hour on two CPU cores.

    python scripts/pretrain_demo_clip.py --output-dir runs/demo_clip  # draws, trains, writes the two files
    python scripts/evaluate_demo_clip.py --weights runs/demo_clip/demo_clip.safetensors    # (or --evaluate here)

Two stages with equally many patches a step: windows of 8 x 8 patches cut out of the picture, then whole pictures.
Captions are contrasted with pictures, with single patches (is this spot damaged? how? which material?) and with
value-value patches. The same command continues an interrupted run.
"""

import ctypes
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from anomaly_lib.backbones.attention import feed_forward, merge_heads, project_qkv
from anomaly_lib.backbones.clip import CLIP_MEAN, CLIP_STD
from anomaly_lib.backbones.clip_text import ClipText
from anomaly_lib.backbones.tokenizer import WordTokenizer
from anomaly_lib.config import Switch, arg, command
from anomaly_lib.data.procedural import captions
from anomaly_lib.data.procedural.defects import DEFECT_NAMES
from anomaly_lib.data.procedural.pictures import MATERIALS, SURFACE, draw
from anomaly_lib.engine.checkpoint import TrainState, load_checkpoint, save_checkpoint
from anomaly_lib.engine.ema import Ema
from anomaly_lib.engine.optim import param_groups, step
from anomaly_lib.engine.schedule import make_schedule
from anomaly_lib.engine.seed import seed_everything
from anomaly_lib.metrics import auroc

STEPS = 1600
SIZE, PATCH, MARGIN = 128, 8, 16
GRID = SIZE // PATCH
DRAWN = SIZE + MARGIN  # pictures are drawn larger and cut to SIZE at random
MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIZE, "patch_size": PATCH, "width": 192, "layers": 5, "head_width": 64},
    "text_cfg": {"context_length": 77, "width": 64, "heads": 1, "layers": 2},
}


# ---- pool of drawn pictures ------------------------------------------------------------------------------------------


def draw_pool(folder: Path, count: int, seed: int) -> dict[str, NDArray[Any]]:
    """`count` clean/damaged pairs on disk: pictures [N, 2, S, S, 3], masks [N, S, S], attributes [N, 3]."""
    pool = {
        "pictures": (np.uint8, (count, 2, DRAWN, DRAWN, 3)),
        "masks": (np.bool_, (count, DRAWN, DRAWN)),
        "attributes": (np.int64, (count, 3)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / f"pool_{count}_{seed}.json"
    paths = {name: folder / f"pool_{count}_{seed}_{name}.npy" for name in pool}
    if not done.is_file():
        arrays = {name: open_memmap(paths[name], "w+", dtype, shape) for name, (dtype, shape) in pool.items()}
        for index in range(count):
            one = draw(np.random.default_rng((seed, index)), DRAWN)
            arrays["pictures"][index] = one.clean, one.damaged
            arrays["masks"][index] = one.mask
            arrays["attributes"][index] = one.material, one.object, one.defect
            if index % 2000 == 1999:
                print(f"drawn {index + 1}/{count} pairs", flush=True)
        done.write_text(json.dumps({"count": count, "seed": seed, "size": DRAWN}))
    return {name: np.load(path, mmap_mode="r") for name, path in paths.items()}


@dataclass
class Batch:
    """P pairs: images [2P, 3, s, s] (clean first), offsets of the window in patches, patch labels, captions."""

    images: Tensor
    offsets: Tensor  # [2P, 2] row, column of the first patch
    patches: Tensor  # [2P, N] 1 damaged, 0 clean, -1 unclear
    material: Tensor  # [P]
    object: Tensor  # [P]
    defect: Tensor  # [P]
    texts: list[str]  # 2P captions, clean first
    text_attributes: Tensor  # [2P, 4] material, object, state, defect; -1 where the caption does not say


def make_batch(pool: dict[str, NDArray[Any]], rng: np.random.Generator, pairs: int, window: int) -> Batch:
    """Random pairs, cut, turned, recoloured and captioned; windows mostly hold the damage."""
    index = np.sort(rng.choice(len(pool["masks"]), pairs, replace=False))
    pixels = window * PATCH
    pictures = np.empty((2, pairs, pixels, pixels, 3), np.float32)
    masks = np.empty((pairs, pixels, pixels), np.float32)
    offsets = np.zeros((pairs, 2), np.int64)
    for row, i in enumerate(index):
        mask = pool["masks"][i]
        cut = rng.integers(0, MARGIN + 1, 2)
        if window < GRID:
            offsets[row] = _aim(rng, mask, cut, window)
        top, left = cut + offsets[row] * PATCH
        area = slice(top, top + pixels), slice(left, left + pixels)
        pair, where = pool["pictures"][i][:, area[0], area[1]], mask[area]
        turns, flip = int(rng.integers(4)), rng.random() < 0.5
        pair, where = np.rot90(pair, turns, (1, 2)), np.rot90(where, turns)
        pictures[:, row], masks[row] = (pair[:, :, ::-1], where[:, ::-1]) if flip else (pair, where)
    images = torch.from_numpy(pictures.reshape(2 * pairs, pixels, pixels, 3)).permute(0, 3, 1, 2) / 255
    share = F.avg_pool2d(torch.from_numpy(masks)[:, None], PATCH).flatten(1)  # [P, N]
    damaged = torch.where(share >= 0.08, 1, torch.where(share == 0, 0, -1))
    attributes = torch.from_numpy(np.array(pool["attributes"][index]))
    texts, said = make_captions(rng, attributes.numpy())
    return Batch(
        images=recolour(images, rng),
        offsets=torch.from_numpy(np.concatenate([offsets, offsets])),
        patches=torch.cat([torch.zeros_like(damaged), damaged]),
        material=attributes[:, 0],
        object=attributes[:, 1],
        defect=attributes[:, 2],
        texts=texts,
        text_attributes=torch.from_numpy(said),
    )


def _aim(rng: np.random.Generator, mask: NDArray[np.bool_], cut: NDArray[np.int64], window: int) -> NDArray[np.int64]:
    """First patch of a window; three times in four around a damaged pixel."""
    last = GRID - window
    free = rng.integers(0, last + 1, 2)
    if rng.random() < 0.25:
        return free
    damaged = np.argwhere(mask)
    patch = (damaged[int(rng.integers(len(damaged)))] - cut) // PATCH
    return np.asarray(np.clip(patch - rng.integers(0, window, 2), 0, last))


def recolour(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast, gamma, channel balance, channel order, grey, noise: a pair does not share them."""
    count = len(images)

    def draws(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, channels, 1, 1)).astype(np.float32))

    order = torch.from_numpy(np.stack([rng.permutation(3) for _ in range(count)]))
    images = images.gather(1, order[:, :, None, None].expand_as(images))
    grey = images.mean(1, keepdim=True)
    images = torch.where(draws(0, 1) < 0.15, grey, images)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = ((images - mean) * draws(0.6, 1.3) + mean * draws(0.7, 1.3) * draws(0.9, 1.1, 3)).clamp(1e-4, 1)
    images = images.pow(draws(0.7, 1.4)) + torch.randn_like(images) * draws(0, 0.03)
    centre, spread = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (images.clamp(0, 1) - centre) / spread


def make_captions(rng: np.random.Generator, attributes: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    """One caption of the clean and one of the damaged picture of each pair, about the same noun."""
    clean, damaged = [], []
    said = np.full((2, len(attributes), 4), -1, np.int64)
    for row, (material, kind, defect) in enumerate(attributes):
        thing, says_material, says_object = captions.noun(rng, int(material), int(kind))
        specific = rng.random() < 0.45
        states = captions.DEFECT_STATES[DEFECT_NAMES[defect]] if specific else captions.DAMAGED_STATES
        clean.append(
            captions.caption(rng, captions.NORMAL_STATES[int(rng.integers(len(captions.NORMAL_STATES)))], thing)
        )
        damaged.append(captions.caption(rng, states[int(rng.integers(len(states)))], thing))
        said[:, row, :2] = says_material, says_object
        said[0, row, 2], said[1, row, 2] = 0, 1
        said[1, row, 3] = defect if specific else -1
    return clean + damaged, said.reshape(-1, 4)


# ---- model -----------------------------------------------------------------------------------------------------------


def build() -> tuple[Any, ClipText, WordTokenizer]:
    """open_clip's own CLIP with a word-level vocabulary."""
    from open_clip.model import CLIP

    tokenizer = WordTokenizer(captions.grammar_words())
    clip = CLIP(**{**MODEL, "text_cfg": {**MODEL["text_cfg"], "vocab_size": tokenizer.vocab_size}})
    return clip, ClipText(clip, tokenizer), tokenizer


def attend(attn: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As `backbones.attention.attend`, spelled out: on a CPU the fused kernel's backward takes four times as long."""
    weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)
    return attn.out_proj(merge_heads(weights.to(v.dtype) @ v))


def encode_windows(clip: Any, images: Tensor, offsets: Tensor, *, value_value: bool) -> dict[str, Tensor]:
    """Projected, normalised image feature and patch features of windows that know where in the picture they are."""
    visual = clip.visual
    x = visual.conv1(images)  # [B, C, h, w]
    height, width = x.shape[-2:]
    x = x.flatten(2).transpose(1, 2)
    rows = (offsets[:, :1] + torch.arange(height))[:, :, None] * GRID  # [B, h, 1]
    places = (rows + (offsets[:, 1:] + torch.arange(width))[:, None, :]).flatten(1)  # [B, h * w]
    table = visual.positional_embedding
    start = (visual.class_embedding + table[0]).expand(len(x), 1, -1)
    x = visual.ln_pre(torch.cat([start.to(x.dtype), x + table[1:][places].to(x.dtype)], 1))
    summed = x
    for block in visual.transformer.resblocks:
        q, k, v = project_qkv(block.attn, block.ln_1(x))
        x = x + attend(block.attn, q, k, v)
        if value_value:
            summed = summed + attend(block.attn, v, v, v)
        x = feed_forward(block, x)

    def joint(tokens: Tensor) -> Tensor:
        return F.normalize((visual.ln_post(tokens) @ visual.proj).float(), dim=-1)

    out = {"pooled": joint(x[:, 0]), "patches": joint(x[:, 1:])}
    return out | ({"vv": joint(summed[:, 1:])} if value_value else {})


def encode_text(text: ClipText, texts: list[str]) -> Tensor:
    """Normalised features; differentiable, equal texts once."""
    distinct = list(dict.fromkeys(texts))
    ids = text.tokenize(distinct)
    features = F.normalize(text.encode(text.embed(ids), text.end_of_text(ids)).float(), dim=-1)
    position = {one: row for row, one in enumerate(distinct)}
    return features[[position[one] for one in texts]]


def balanced_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy over labels 0/1 (others ignored), damaged and clean weighted 1 : 2 in total."""
    each = F.binary_cross_entropy_with_logits(logits, labels.clamp_min(0).float(), reduction="none")
    damaged, clean = (labels == 1).float(), (labels == 0).float()
    return (each * damaged).sum() / damaged.sum().clamp_min(1) / 3 + (each * clean).sum() / clean.sum().clamp_min(
        1
    ) * 2 / 3


def losses(clip: Any, text: ClipText, batch: Batch, *, value_value: bool, precision: str) -> dict[str, Tensor]:
    """Every term of the objective by name."""
    pairs = len(batch.material)
    names = [captions.DEFECT_STATES[name][1].format("object") for name in DEFECT_NAMES]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        out = encode_windows(clip, batch.images, batch.offsets, value_value=value_value)
        words = encode_text(text, [*batch.texts, *names, *MATERIALS])
    scale = clip.logit_scale.exp().clamp(max=100)
    said, kinds, materials = words.split([2 * pairs, len(names), len(MATERIALS)])
    label = torch.where((batch.patches == 1).any(1), 1, torch.where((batch.patches == 0).all(1), 0, -1))  # [2P]
    # A third of the pairs borrow another pair's noun: "damaged" has to mean the same whatever the noun.
    order = torch.where(torch.rand(pairs) < 0.33, torch.randperm(pairs), torch.arange(pairs))
    direction = (said[pairs:] - said[:pairs])[order].repeat(2, 1)  # [2P, D] from "clean" to "damaged"
    result = {
        "state": balanced_bce(scale * (out["pooled"] * direction).sum(-1), label),
        "patch": balanced_bce(scale * torch.einsum("bnd,bd->bn", out["patches"], direction), batch.patches),
    }
    if value_value:
        result["vv"] = balanced_bce(scale * torch.einsum("bnd,bd->bn", out["vv"], direction), batch.patches)
    damaged = batch.patches == 1
    defect = batch.defect.repeat(2)[:, None].expand_as(damaged)[damaged]
    if len(defect):
        result["kind"] = F.cross_entropy(scale * out["patches"][damaged] @ kinds.T, defect)
    surface = (batch.object.repeat(2) == SURFACE)[:, None] & (batch.patches == 0)
    material = batch.material.repeat(2)[:, None].expand_as(surface)[surface]
    if len(material):
        result["material"] = F.cross_entropy(scale * out["patches"][surface] @ materials.T, material)
    result["caption"] = caption_loss(scale * out["pooled"] @ said.T, batch, label)
    return result


def caption_loss(logits: Tensor, batch: Batch, label: Tensor) -> Tensor:
    """Picture to caption and back; every caption that is true of a picture is a right answer."""
    pairs = len(batch.material)
    state = torch.cat([torch.zeros(pairs, dtype=torch.long), torch.ones(pairs, dtype=torch.long)])
    defect = torch.where(state == 1, batch.defect.repeat(2), -2)
    truth = torch.stack([batch.material.repeat(2), batch.object.repeat(2), state, defect], 1)  # [2P, 4]
    said = batch.text_attributes
    fits = ((truth[:, None] == said[None]) | (said[None] == -1)).all(-1).float()  # [picture, caption]
    seen = (label == state).float()  # a window without the damage is no picture of damage
    rows = -(fits / fits.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1)
    down = -(fits / fits.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0)
    return ((rows + down) * seen).sum() / (2 * seen.sum().clamp_min(1))


WEIGHTS = {"state": 1.0, "patch": 2.0, "vv": 1.5, "kind": 0.4, "material": 0.3, "caption": 0.5}


# ---- run -------------------------------------------------------------------------------------------------------------


@dataclass
class Options:
    """Everything that decides the weights."""

    output_dir: str = arg("runs/demo_clip", "folder for the pool of pictures, the checkpoint and the weights")
    pairs: int = arg(24000, "clean/damaged pairs drawn once", at_least=2)
    steps: int = arg(STEPS, "optimiser steps", at_least=1)
    whole_from: float = arg(0.6, "share of the steps on windows; the rest sees whole pictures", at_least=0, at_most=1)
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
    pool = draw_pool(folder, options.pairs, options.seed)
    held_out = draw_pool(folder, 256, options.seed + 1)
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
        window = GRID // 2 if index < options.whole_from * options.steps else GRID
        pairs = options.window_pairs * GRID**2 // (4 * window**2)
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
            for option, value in (
                (-3, 1 << 30),
                (-1, (1 << 31) - 1),
                (-2, 1 << 28),
            ):  # mmap and trim thresholds, padding
                mallopt(option, value)


@torch.no_grad()
def validate(clip: nn.Module, text: ClipText, pool: dict[str, NDArray[Any]]) -> dict[str, float]:
    """Zero-shot AUROC of pictures and patches drawn with another seed."""
    clip.eval()
    prompts = encode_text(
        text, [state.format("object") for state in (*captions.NORMAL_STATES, *captions.DAMAGED_STATES)]
    )
    normal, damaged = prompts[: len(captions.NORMAL_STATES)].mean(0), prompts[len(captions.NORMAL_STATES) :].mean(0)
    scores: dict[str, list[Tensor]] = {"pooled": [], "patches": [], "vv": [], "label": []}
    for part in range(8):
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
