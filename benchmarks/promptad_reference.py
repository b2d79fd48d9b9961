"""The schedule of the published PromptAD trainer as a plain loop, for bench_promptad.py: nothing outlives an epoch.

Each epoch decodes and encodes the support images again, runs every prompt at the full 77 tokens, takes one step, then
decodes, encodes and scores the whole test set and computes the metric with scikit-learn. All quirks are on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score
from torch import Tensor

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BATCH = 16


def read_image(path: Path, size: int, *, bgr: bool) -> Tensor:
    """1024x1024 bilinear, then `size` bicubic, CLIP statistics; test images arrive as BGR."""
    pixels = Image.open(path).convert("RGB").resize((1024, 1024), Image.Resampling.BILINEAR)
    pixels = pixels.resize((size, size), Image.Resampling.BICUBIC)
    array = np.asarray(pixels)[..., ::-1] if bgr else np.asarray(pixels)
    tensor = torch.from_numpy(np.array(array)).permute(2, 0, 1).float() / 255
    return (tensor - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def dual_attention(attn: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    """Ordinary and value-value attention of one block."""
    q, k, v = (
        (y @ attn.in_proj_weight.T + attn.in_proj_bias).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    )
    scale = q.shape[-1] ** -0.5
    ordinary = (q @ k.mT * scale).softmax(-1) @ v
    values = (v @ v.mT * scale).softmax(-1) @ v
    return tuple(attn.out_proj(x.transpose(1, 2).flatten(2)) for x in (ordinary, values))  # type: ignore[return-value]


@torch.no_grad()
def encode_images(clip: Any, images: Tensor, taps: Sequence[int]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Unit pooled feature, value-value tokens and the aliased memory taps."""
    visual = clip.visual
    x = visual.conv1(images).flatten(2).mT
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
    x = other = visual.ln_pre(x)
    kept = []
    for index, block in enumerate(visual.transformer.resblocks):
        ordinary, values = dual_attention(block.attn, block.ln_1(x))
        other, x = other + values, x + ordinary
        if index - 1 in taps:
            kept.append(x[:, 1:])
        x = x + block.mlp(block.ln_2(x))
    pooled = visual.ln_post(x[:, 0]) @ visual.proj
    tokens = visual.ln_post(other[:, 1:]) @ visual.proj
    unit = [F.normalize(t, dim=-1) for t in (pooled, tokens, *kept)]
    return unit[0], unit[1], unit[2:]


class Reference:
    """One (class, k, task) of the original."""

    def __init__(self, clip: Any, tokenizer: Any, *, words: str, states: Sequence[str], task: str, size: int,
                 normal: Tensor, abnormal: Tensor, taps: Sequence[int], resolution: int) -> None:  # fmt: skip
        self.clip, self.task, self.size, self.taps, self.resolution = clip, task, size, taps, resolution
        self.normal = normal.detach().clone().requires_grad_()
        self.abnormal = abnormal.detach().clone().requires_grad_()
        n_pro, n_ab = len(normal), len(abnormal)
        plain = " ".join(["N"] * normal.shape[1])
        both = f"{plain} {' '.join(['A'] * abnormal.shape[1])}"
        rows = [(f"{plain} {words}.", i, None) for i in range(n_pro)]
        rows += [(f"{plain} {state.format(words)}.", i, None) for state in states for i in range(n_pro)]
        rows += [(f"{both} {words}.", r % n_pro, r % n_ab) for r in range(n_pro * n_ab)]
        self.counts = (n_pro, n_pro * len(states), n_pro * n_ab)
        self.rows = [(i, j) for _, i, j in rows]
        self.ids = tokenizer([text for text, _, _ in rows], context_length=77)
        with torch.no_grad():
            self.embedded = clip.token_embedding(self.ids)
        self.mask = torch.full((77, 77), float("-inf")).triu(1)
        self.scale = clip.logit_scale.detach()

    def text(self) -> tuple[Tensor, Tensor, Tensor]:
        """Raw features of the three groups; every prompt runs at 77 tokens."""
        prompts = []
        for row, (i, j) in enumerate(self.rows):
            context = [self.normal[i]] + ([] if j is None else [self.abnormal[j]])
            used = 1 + sum(len(part) for part in context)
            prompts.append(torch.cat([self.embedded[row, :1], *context, self.embedded[row, used:]]))
        x = torch.stack(prompts) + self.clip.positional_embedding
        for block in self.clip.transformer.resblocks:
            y = block.ln_1(x)
            x = x + block.attn(y, y, y, need_weights=False, attn_mask=self.mask)[0]
            x = x + block.mlp(block.ln_2(x))
        x = self.clip.ln_final(x)[torch.arange(len(x)), self.ids.argmax(-1)] @ self.clip.text_projection
        return x.split(self.counts)  # type: ignore[return-value]

    def loss(self, features: Tensor) -> Tensor:
        normal, manual, learned = self.text()
        wn = F.normalize(normal.mean(0), dim=-1)
        wa = F.normalize(torch.cat([manual, learned]).mean(0), dim=-1)
        classes = torch.cat([wn[None], F.normalize(torch.cat([manual, learned]), dim=-1)])
        logits = (self.scale * features @ classes.T).flatten(0, -2)
        entropy = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
        gap = ((features - wn) ** 2).sum(1) - ((features - wa) ** 2).sum(1)
        align = (F.normalize(manual, dim=-1).mean(0) - F.normalize(learned, dim=-1).mean(0)).square().sum()
        return entropy + gap.relu().mean() + 0.001 * align

    def start(self, support: Sequence[Path], epochs: int) -> None:
        """Memory and optimiser."""
        _, _, taps = self.encode(support, bgr=False)
        self.galleries = [tap.flatten(0, 1) for tap in taps]
        self.optimizer = torch.optim.SGD([self.normal, self.abnormal], lr=0.002, momentum=0.9, weight_decay=5e-4)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=epochs, eta_min=1e-5)

    def encode(self, paths: Sequence[Path], *, bgr: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Decode, transform and encode a list of files."""
        parts = []
        for first in range(0, len(paths), BATCH):
            images = torch.stack([read_image(p, self.size, bgr=bgr) for p in paths[first : first + BATCH]])
            parts.append(encode_images(self.clip, images, self.taps))
        taps = [torch.cat([part[2][level] for part in parts]) for level in range(len(self.taps))]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), taps

    def train_epoch(self, support: Sequence[Path]) -> float:
        """Encode the support again, one step."""
        pooled, tokens, _ = self.encode(support, bgr=False)
        loss = self.loss(pooled if self.task == "cls" else tokens)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    @torch.no_grad()
    def test_epoch(self, paths: Sequence[Path], labels: np.ndarray, masks: np.ndarray) -> float:
        """Encode and score the whole test set, AUROC by scikit-learn."""
        pooled, tokens, taps = self.encode(paths, bgr=True)
        normal, manual, learned = self.text()
        prototypes = torch.stack([F.normalize(t.mean(0), dim=-1) for t in (normal, torch.cat([manual, learned]))])
        levels = [((1 - tap @ bank.T) / 2).amin(-1) for tap, bank in zip(taps, self.galleries, strict=True)]
        side = int(levels[0].shape[1] ** 0.5)
        visual = (sum(levels) / 2).unflatten(1, (side, side))
        size = (self.resolution, self.resolution)
        if self.task == "cls":
            textual = (self.scale * pooled @ prototypes.T).softmax(-1)[:, 1]
            largest = F.interpolate(visual[:, None], size, mode="bilinear").flatten(1).amax(1)
            return float(roc_auc_score(labels, (1 / (1 / largest + 1 / textual)).numpy()))
        textual = (self.scale * tokens @ prototypes.T).softmax(-1)[..., 1].unflatten(1, (side, side))
        fused = 1 / (1 / textual + 1 / visual)
        maps = F.interpolate(fused[:, None], size, mode="bilinear")[:, 0].numpy()
        smooth = np.stack([gaussian_filter(one, sigma=4) for one in maps])
        return float(roc_auc_score(masks.ravel(), smooth.ravel()))
