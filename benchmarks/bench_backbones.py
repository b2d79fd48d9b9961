"""What does one pass with taps cost, against open_clip's plain forward and against a pass for every reader?

And: how many prompts a second when encoding stops at the last end of text, or runs on the tree of common beginnings.

    python benchmarks/bench_backbones.py [--model ViT-B-16-plus-240] [--output FILE.json]
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from harness import BenchmarkArgs, finish, in_turn, machine
from torch import Tensor

from anomaly_lib.backbones import create_backbone
from anomaly_lib.command_line import command
from anomaly_lib.config import arg
from anomaly_lib.models.promptad.prompts import PromptTree


@dataclass
class Args(BenchmarkArgs):
    """Frozen towers."""

    model: str = arg("ViT-B-16-plus-240", "CLIP by its name")
    batch: int = arg(4, "images at a time", at_least=1)
    threads: int = arg(2, "CPU threads", at_least=1)


def separate_passes(net: Any, images: Tensor, taps: list[int]) -> list[Tensor]:
    """As the originals do it: one forward for the pooled feature, another one with hooks for the patch tokens."""
    kept: list[Tensor] = []
    pooled = net.encode_image(images)
    blocks = net.visual.transformer.resblocks
    handles = [blocks[i].register_forward_hook(lambda *found: kept.append(found[-1])) for i in taps]
    net.encode_image(images)
    for handle in handles:
        handle.remove()
    return [pooled, *kept]


def _rates(works: dict[str, Callable[[], Any]], count: int, repeats: int) -> dict[str, float]:
    """Units a core second: in turn and on the core's clock, so that another job on the machine takes from all alike."""
    return {label: count / found.core_seconds for label, found in in_turn(works, repeats=repeats).items()}


def images_per_core_second(name: str, batch: int, repeats: int) -> dict[str, float]:
    depth = len(create_backbone(name, weights="random").clip.visual.transformer.resblocks)
    taps = [depth // 4 - 1, depth // 2 - 1, 3 * depth // 4 - 1, depth - 1]
    tapped = create_backbone(name, weights="random", layers=(*taps, "pooled"))
    dual = create_backbone(name, weights="random", layers=(*taps, "pooled", "vv_tokens"))
    early = create_backbone(name, weights="random", layers=taps[:2])
    images = torch.randn(batch, 3, *tapped.image_size)
    with torch.no_grad():
        works = {
            "open_clip plain forward": lambda: tapped.clip.encode_image(images),
            "one pass, 4 taps + pooled": lambda: tapped.encode(images),
            "one pass, 4 taps + pooled + v-v path": lambda: dual.encode(images),
            "one pass, first 2 taps only": lambda: early.encode(images),
            "two passes with hooks": lambda: separate_passes(tapped.clip, images, taps),
        }
        return _rates(works, batch, repeats)


def prompts_per_core_second(name: str, repeats: int) -> dict[str, float]:
    text = create_backbone(name, weights="random").text
    states = ["damaged", "flawed", "broken", "scratched", "stained", "cut", "bent", "cracked"]
    phrases = [f"N N N N {state} metal nut number {i}." for state in states for i in range(4)]
    ids = text.tokenize(phrases)
    end, embedded = text.end_of_text(ids), text.embed(ids)
    tree = PromptTree([row[: int(stop) + 1].tolist() for row, stop in zip(ids, end, strict=True)])
    nodes = text.embed(torch.tensor(tree.symbols))
    tower: Any = text.tower

    def full() -> Tensor:
        x = tower.transformer(embedded + tower.positional_embedding, attn_mask=tower.attn_mask)
        return tower.ln_final(x)[torch.arange(len(x)), end] @ tower.text_projection

    with torch.no_grad():
        works = {
            "all 77 positions": full,
            "up to the last end of text": lambda: text.encode(embedded, end),
            "tree of common beginnings (PromptAD)": lambda: text.encode_tree(
                nodes, tree.positions, tree.seen, tree.ends
            ),
        }
        return _rates(works, len(phrases), repeats)


def bench(args: Args) -> None:
    """Measure, print, write."""
    torch.set_num_threads(args.threads)
    report: dict[str, Any] = {
        "question": __doc__,
        "machine": machine("open_clip_torch"),
        "model": args.model,
        "images_per_core_second": images_per_core_second(args.model, args.batch, args.repeats),
        "prompts_per_core_second": prompts_per_core_second(args.model, args.repeats),
    }
    for unit in ("images_per_core_second", "prompts_per_core_second"):
        base = next(iter(report[unit].values()))
        for label, rate in report[unit].items():
            print(f"{label:40s} {rate:9.2f} {unit.replace('_', ' ')}  x{rate / base:.2f}")
    finish(report, args.output)


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, bench, argv, prog="bench_backbones.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
