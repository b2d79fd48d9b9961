"""An independent PromptAD, written as loops over images, blocks, heads and full 77-token prompts, without library code.

It reads nothing but an open_clip module with random weights, and must agree on every stage to 1e-5: features of both
streams, memory taps, prompt features, losses, scores, maps and the contexts after an optimiser step.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from anomaly_lib.backbones.clip import create_clip
from anomaly_lib.models.promptad.model import PromptAD
from anomaly_lib.models.promptad.scores import ImageFeatures, Scoring

pytestmark = pytest.mark.parity
STATES_OF_METAL_NUT = [
    "damaged metal nut", "flawed metal nut", "abnormal metal nut", "imperfect metal nut", "blemished metal nut",
    "metal nut with flaw", "metal nut with defect", "metal nut with damage", "metal nut with a bent shape",
    "metal nut with color stain", "metal nut with a flipped orientation", "metal nut with scratch",
]  # fmt: skip
SIZE = (40, 40)


class Twin:
    """The original algorithm, slowly."""

    def __init__(self, clip: Any, normal: torch.Tensor, abnormal: torch.Tensor, *, paper: bool, task: str) -> None:
        self.clip, self.paper, self.task = clip, paper, task
        self.normal = normal.detach().clone().requires_grad_()
        self.abnormal = abnormal.detach().clone().requires_grad_()
        stored = float(clip.logit_scale)
        self.scale = stored if paper else math.exp(stored)

    @torch.no_grad()
    def image(self, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        visual = self.clip.visual
        patches = F.conv2d(picture[None], visual.conv1.weight, stride=visual.conv1.stride)[0].flatten(1).T  # [P, C]
        x = torch.cat([visual.class_embedding[None], patches]) + visual.positional_embedding
        x = visual.ln_pre(x)
        other, taps = x.clone(), []
        blocks = visual.transformer.resblocks
        for index, block in enumerate(blocks):
            y = block.ln_1(x)
            attended, values = self.attention(block.attn, y)
            other = other + values
            x = x + attended
            if self.paper and index - 1 in (0, 2):
                taps.append(x[1:].clone())
            x = x + block.mlp(block.ln_2(x))
            if not self.paper and index in (0, 2):
                taps.append(x[1:].clone())
        pooled = visual.ln_post(x[0]) @ visual.proj
        tokens = visual.ln_post(other[1:]) @ visual.proj
        unit = [t / t.norm(dim=-1, keepdim=True) for t in (pooled, tokens, *taps)]
        return unit[0], unit[1], unit[2:]

    @staticmethod
    def attention(attn: Any, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        width = y.shape[1]
        joint = y @ attn.in_proj_weight.T + attn.in_proj_bias
        q, k, v = joint[:, :width], joint[:, width : 2 * width], joint[:, 2 * width :]
        d = width // attn.num_heads
        first, second = [], []
        for h in range(attn.num_heads):
            part = slice(h * d, (h + 1) * d)
            first.append(torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(d), -1) @ v[:, part])
            second.append(torch.softmax(v[:, part] @ v[:, part].T / math.sqrt(d), -1) @ v[:, part])
        return attn.out_proj(torch.cat(first, 1)), attn.out_proj(torch.cat(second, 1))

    def sentence(self, tokenizer: Any, words: str, i: int, j: int | None) -> torch.Tensor:
        letters = ["N"] * self.normal.shape[1] + ([] if j is None else ["A"] * self.abnormal.shape[1])
        ids = tokenizer([" ".join(letters) + " " + words + "."], context_length=77)[0]
        x = self.clip.token_embedding(ids)
        pieces = [x[:1], self.normal[i]] + ([] if j is None else [self.abnormal[j]])
        x = torch.cat([*pieces, x[sum(len(p) for p in pieces) :]]) + self.clip.positional_embedding
        for block in self.clip.transformer.resblocks:
            y = block.ln_1(x)
            mask = torch.full((77, 77), float("-inf")).triu(1)
            x = x + block.attn(y[None], y[None], y[None], need_weights=False, attn_mask=mask)[0][0]
            x = x + block.mlp(block.ln_2(x))
        return self.clip.ln_final(x)[int(ids.argmax())] @ self.clip.text_projection

    def prompts(self, tokenizer: Any) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        n_pro, n_ab = len(self.normal), len(self.abnormal)
        normal = [self.sentence(tokenizer, "metal nut", i, None) for i in range(n_pro)]
        manual = [self.sentence(tokenizer, words, i, None) for words in STATES_OF_METAL_NUT for i in range(n_pro)]
        if self.paper:
            pairs = [(r % n_pro, r % n_ab) for r in range(n_pro * n_ab)]
        else:
            pairs = [(i, j) for j in range(n_ab) for i in range(n_pro)]
        return normal, manual, [self.sentence(tokenizer, "metal nut", i, j) for i, j in pairs]

    def loss(self, tokenizer: Any, features: list[torch.Tensor]) -> torch.Tensor:
        normal, manual, learned = self.prompts(tokenizer)
        wn = torch.stack(normal).mean(0)
        wa = torch.stack(manual + learned).mean(0)
        wn, wa = wn / wn.norm(), wa / wa.norm()
        singles = [w / w.norm() for w in manual + learned]
        entropy, hinges = [], []
        for f in features:  # one image: [D] or [P, D]
            rows = f[None] if f.ndim == 1 else f
            for row in rows:
                logits = torch.stack([self.scale * (row @ w) for w in [wn, *singles]])
                entropy.append(-torch.log_softmax(logits, 0)[0])
            if self.paper and f.ndim == 2:  # summed over patches, one hinge a channel
                for c in range(rows.shape[1]):
                    gap = sum((r[c] - wn[c]) ** 2 - (r[c] - wa[c]) ** 2 for r in rows)
                    hinges.append(torch.relu(gap))
            else:
                hinges += [torch.relu(((r - wn) ** 2).sum() - ((r - wa) ** 2).sum()) for r in rows]
        mean_manual = torch.stack([w / w.norm() for w in manual]).mean(0)
        mean_learned = torch.stack([w / w.norm() for w in learned]).mean(0)
        alignment = ((mean_manual - mean_learned) ** 2).sum()
        return torch.stack(entropy).mean() + torch.stack(hinges).mean() + 0.001 * alignment

    @torch.no_grad()
    def score(self, tokenizer: Any, support: list[Any], picture: torch.Tensor) -> tuple[float, np.ndarray]:
        normal, manual, learned = self.prompts(tokenizer)
        wn, wa = torch.stack(normal).mean(0), torch.stack(manual + learned).mean(0)
        wn, wa = wn / wn.norm(), wa / wa.norm()
        pooled, tokens, taps = self.image(picture)

        def textual(f: torch.Tensor) -> float:
            a, n = float(self.scale * (f @ wa)), float(self.scale * (f @ wn))
            return 1 / (1 + math.exp(n - a))

        side = int(math.sqrt(len(tokens)))
        visual = np.zeros(len(tokens))
        for p in range(len(tokens)):
            for level in range(2):
                bank = torch.cat([s[2][level] for s in support])
                visual[p] += 0.5 * min((1 - float(row @ taps[level][p])) / 2 for row in bank)
        if self.task == "cls":
            grid = torch.tensor(visual, dtype=torch.float32).view(1, 1, side, side)
            largest = float(F.interpolate(grid, SIZE, mode="bilinear").max())
            return 1 / (1 / largest + 1 / textual(pooled)), np.zeros(SIZE)
        fused = [1 / (1 / v + 1 / textual(t)) for v, t in zip(visual, tokens, strict=True)]
        grid = torch.tensor(fused, dtype=torch.float32).view(1, 1, side, side)
        smooth = gaussian_filter(F.interpolate(grid, SIZE, mode="bilinear")[0, 0].numpy(), sigma=4)
        return float(smooth.max()), smooth


def _unit_features(out: dict[str, torch.Tensor], tap: str) -> ImageFeatures:
    unit = {name: F.normalize(value, dim=-1) for name, value in out.items()}
    side = int(math.sqrt(unit["vv_tokens"].shape[1]))
    return ImageFeatures(
        [unit[f"{tap}.0"], unit[f"{tap}.2"]], (side, side), (side, side), unit["pooled"], unit["vv_tokens"]
    )


@pytest.mark.parametrize("paper", [False, True], ids=["clean", "paper"])
@pytest.mark.parametrize("task", ["cls", "seg"])
def test_library_equals_the_loops(task: str, paper: bool) -> None:
    tap = "next_attn" if paper else "layer"
    n_pro, n_pro_ab = (3, 4) if task == "cls" else (2, 4)  # 2 and 4 share a factor: the pairings differ
    backbone = create_clip("tiny-clip", weights="random")
    model = PromptAD(
        towers=backbone, class_name="metal_nut", task=task, n_pro=n_pro, n_pro_ab=n_pro_ab, resolution=SIZE[0],
        logit_scale="raw" if paper else "exp", triplet_axis="patch" if paper else "channel",
        pairing="modulo" if paper else "all", memory_tap="post_attn_next" if paper else "block_out",
    )  # fmt: skip
    learner = model.learner
    support, test = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64)
    twin = Twin(backbone.clip, learner.normal_ctx, learner.abnormal_ctx, paper=paper, task=task)
    images = [twin.image(picture) for picture in support]
    ours = _unit_features(backbone.encode(support), tap)
    for n in range(2):
        torch.testing.assert_close(ours.pooled[n], images[n][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.tokens[n], images[n][1], atol=1e-5, rtol=0)
        for level in range(2):
            torch.testing.assert_close(ours.taps[level][n], images[n][2][level], atol=1e-5, rtol=0)

    loss = sum(model.losses(ours.for_task(task)).values())
    features = [image[0] if task == "cls" else image[1] for image in images]
    want = twin.loss(backbone.text.tokenizer, features)
    torch.testing.assert_close(loss, want, atol=1e-5, rtol=1e-5)

    for parameters, value in ((list(model.parameters()), loss), ([twin.normal, twin.abnormal], want)):
        optimizer = torch.optim.SGD(parameters, lr=0.5, momentum=0.9, weight_decay=5e-4)
        value.backward()
        optimizer.step()
    assert twin.normal.grad.abs().max() > 1e-4
    torch.testing.assert_close(learner.normal_ctx, twin.normal, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(learner.abnormal_ctx, twin.abnormal, atol=1e-5, rtol=1e-5)
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())

    model.remember(ours.gallery_rows())
    model.keep_text_features()
    prediction = Scoring(model.config).predict(model.branches(_unit_features(backbone.encode(test), tap)))
    for n in range(2):
        score, smooth = twin.score(backbone.text.tokenizer, images, test[n])
        assert float(prediction.score[n]) == pytest.approx(score, abs=1e-5)
        if task == "seg":
            np.testing.assert_allclose(prediction.map[n].numpy(), smooth, atol=1e-5)
