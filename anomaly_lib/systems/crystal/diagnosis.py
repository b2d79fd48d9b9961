"""Diagnosis of a trained crystal model: what the text does inside, over a whole sample, with standard errors."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_lib.errors import UserError
from anomaly_lib.models.crystal.diagnosis import fusion_measures
from anomaly_lib.models.crystal.elements import SYMBOLS
from anomaly_lib.systems.crystal.data.dataset import Split
from anomaly_lib.systems.crystal.detector import CrystalDetector
from anomaly_lib.systems.crystal.inputs import CrystalData
from anomaly_lib.systems.crystal.sample import SampleArgs
from anomaly_lib.systems.crystal.scales import crystal_checkpoint
from anomaly_lib.systems.registry import SYSTEMS

Values = dict[str, np.ndarray]


def trained_model(path: str, weights: str | None = None) -> CrystalDetector:
    """The detector of a checkpoint of this system, ours or an original program's; `weights`: of its text encoder."""
    detector = SYSTEMS.detector_of(crystal_checkpoint(Path(path)), weights=weights)
    assert isinstance(detector, CrystalDetector)
    return detector


def open_sample(path: str, args: SampleArgs, *beside: str) -> tuple[CrystalDetector, CrystalData, list[int]]:
    """A trained model, the crystals to look at prepared for it (and those of the parts `beside`), their positions."""
    detector = trained_model(path, args.weights)
    if not text_scales(detector):
        raise UserError(f"{path}: has no middle fusion to look into; it is trained with use_middle_fusion=True")

    def chosen(split: Split) -> list[int]:
        looked_at = range(args.n_samples) if args.part == "all" else getattr(split, args.part)[: args.n_samples]
        return [*looked_at, *(i for part in beside for i in getattr(split, part))]

    wanted = {"dataset": args.dataset, "property": args.property}
    options: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    data = detector.load_data(args.data_path, chosen=chosen, **options)
    return detector, data, sample_positions(data, args.n_samples, args.part)


@dataclass(frozen=True)
class Alphas:
    """Gate of every atom of a sample, averaged over channels: large alpha = much text."""

    alphas: np.ndarray  # [atoms]
    atom_types: np.ndarray  # [atoms] atomic numbers
    offsets: np.ndarray  # [crystals + 1] where a crystal's atoms begin
    targets: np.ndarray  # [crystals]
    jids: np.ndarray  # [crystals]

    @property
    def per_crystal(self) -> list[np.ndarray]:
        return [self.alphas[a:b] for a, b in zip(self.offsets[:-1], self.offsets[1:], strict=True)]

    def by_element(self, at_least: int = 1) -> list[tuple[str, float, float, int]]:
        """(symbol, mean, standard deviation, atoms), sorted by mean."""
        rows = []
        for number in np.unique(self.atom_types):
            values = self.alphas[self.atom_types == number]
            if len(values) >= at_least:
                rows.append((SYMBOLS[int(number) - 1], float(values.mean()), float(values.std()), len(values)))
        return sorted(rows, key=lambda row: row[1])


def sample_positions(data: CrystalData, count: int, part: str = "all") -> list[int]:
    """The first `count` crystals of a part of the data (all rows in file order, or train, val, test)."""
    positions = list(range(len(data.rows))) if part == "all" else list(getattr(data.split, part))
    return positions[:count]


def measure(
    detector: CrystalDetector, data: CrystalData, positions: Sequence[int], *, batch_size: int = 16
) -> dict[str, Values]:
    """Every measurement of `fusion_measures` over these crystals, per fusion module."""
    collected: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for batch in data.batches(positions, batch_size):
        moved = batch.to(detector.device)
        found = fusion_measures(detector.model, moved.graph, moved.text, moved.text_mask)
        for layer, values in found.items():
            for name, value in values.items():
                collected[layer][name].append(value.float().cpu().numpy())
    return {layer: {k: np.concatenate(v) for k, v in values.items()} for layer, values in collected.items()}


def extract_alphas(
    detector: CrystalDetector, data: CrystalData, positions: Sequence[int], *, batch_size: int = 16
) -> dict[str, Alphas]:
    """Fusion module (``layer_2``) -> its gates with the atoms they belong to, in the order of the layers."""
    measured = measure(detector, data, positions, batch_size=batch_size)
    numbers = [np.asarray(data.graphs[i].numbers) for i in positions]
    return {
        layer: Alphas(
            alphas=values["alpha"],
            atom_types=np.concatenate(numbers).astype(np.int64),
            offsets=np.cumsum([0, *map(len, numbers)]),
            targets=np.array([data.rows[i].target for i in positions]),
            jids=np.array([data.rows[i].id for i in positions]),
        )
        for layer, values in measured.items()
    }


def standard_error(values: np.ndarray) -> float:
    """Of the mean."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


@dataclass(frozen=True)
class Summary:
    """The figures people quote, for one fusion module."""

    ratio_before_norm: float  # mean |x| / mean |u|: 1 = atoms and text equally long where they are added
    ratio_gate_input: float  # the same after the gate's norm: what the published tool calls node/text ratio
    cosine_before: float
    cosine_after: float
    injected_share: float  # mean |g u| / |x|
    alpha_mean: float
    alpha_std: float
    alpha_range: float
    channel_std: float
    relative_change: float
    gate_change_correlation: float
    recommended_scale: float  # initial_scale that would make the text as long as the atoms

    @classmethod
    def of(cls, values: Values) -> "Summary":
        alpha, change = values["alpha"], values["change"]
        constant = alpha.std() < 1e-12 or change.std() < 1e-12
        raw = float(values["text_raw_norm"].mean())
        return cls(
            ratio_before_norm=_ratio(values["node_norm_before"], values["text_added_norm"]),
            ratio_gate_input=_ratio(values["gate_node_half_norm"], values["gate_text_half_norm"]),
            cosine_before=float(values["cosine_before"].mean()),
            cosine_after=float(values["cosine_after"].mean()),
            injected_share=float(values["injected_share"].mean()),
            alpha_mean=float(alpha.mean()),
            alpha_std=float(alpha.std()),
            alpha_range=float(np.ptp(alpha)),
            channel_std=float(values["alpha_channel_std"].mean()),
            relative_change=float(values["relative_change"].mean()),
            gate_change_correlation=math.nan if constant else float(np.corrcoef(alpha, change)[0, 1]),
            recommended_scale=float(values["node_norm_before"].mean()) / max(raw, 1e-8),
        )


def _ratio(over: np.ndarray, under: np.ndarray) -> float:
    return float(over.mean()) / max(float(under.mean()), 1e-8)


def diagnosis_lines(values: Values) -> list[str]:
    """The report of one fusion module, every figure named for when it is taken."""
    summary = Summary.of(values)

    def line(label: str, name: str) -> str:
        return f"  {label:<52} {values[name].mean():9.4f} +- {standard_error(values[name]):.4f}"

    lines = [
        "text branch",
        line("text vector that enters, L2 norm", "text_input_norm"),
        line("transformed text before text_scale, L2 norm", "text_raw_norm"),
        line("transformed text as added, L2 norm", "text_added_norm"),
        "atoms",
        line("before fusion, L2 norm", "node_norm_before"),
        line("after fusion, L2 norm (a LayerNorm sets it)", "node_norm_after"),
        f"  {'node/text ratio before the gate norm':<52} {summary.ratio_before_norm:9.4f}:1",
        f"  {'node/text ratio at the gate (published measure)':<52} {summary.ratio_gate_input:9.4f}:1",
        "gate",
        line("alpha = mean over channels (large = much text)", "alpha"),
        line("spread over channels within an atom", "alpha_channel_std"),
        line("share of channels below 0.1", "gate_below_0.1"),
        line("share of channels above 0.9", "gate_above_0.9"),
        line("share of channels from 0.3 to 0.7", "gate_0.3_to_0.7"),
        f"  {'alpha spread / range over atoms':<52} {summary.alpha_std:9.4f} / {summary.alpha_range:.4f}",
        "effect",
        line("injected share |g u| / |x|", "injected_share"),
        line("cosine(atoms, text) BEFORE fusion", "cosine_before"),
        line("cosine(atoms, text) AFTER fusion", "cosine_after"),
        line("relative change (published; mostly the LayerNorm)", "relative_change"),
        f"  {'correlation of alpha with the change':<52} {summary.gate_change_correlation:9.4f}",
        "cosine(atoms, text) along the network",
    ]
    depths = sorted((name for name in values if name.startswith("cosine_layer_")), key=lambda n: int(n.split("_")[-1]))
    lines += [line(f"after layer {int(name.split('_')[-1]) + 1}", name) for name in depths]
    return [*lines, "reading", *(f"  {text}" for text in advice(summary))]


def advice(summary: Summary) -> list[str]:
    """What the figures suggest; the recommended scale makes text and atoms equally long where they are added."""
    texts = [f"recommended --middle_fusion_initial_scale: {summary.recommended_scale:.2f}"]
    if summary.ratio_before_norm > 2:
        texts.append("atoms drown the text: raise the scale, or use --middle_fusion_norm_per_half True")
    if summary.ratio_before_norm < 0.5:
        texts.append("the text drowns the atoms: lower the scale")
    if summary.injected_share < 0.05:
        texts.append("less than 5 % of what leaves the module is text: fusion is close to switched off")
    if summary.alpha_std < 0.05:
        texts.append("alpha hardly differs between atoms; it is a mean over channels, so look at their spread as well")
    if abs(summary.gate_change_correlation) < 0.1:
        texts.append("the gate says little about how much an atom changes")
    return texts


COMPARED = (
    ("node/text ratio before the gate norm", "ratio_before_norm"),
    ("node/text ratio at the gate", "ratio_gate_input"),
    ("cosine before fusion", "cosine_before"),
    ("cosine after fusion", "cosine_after"),
    ("injected share", "injected_share"),
    ("alpha mean", "alpha_mean"),
    ("alpha spread over atoms", "alpha_std"),
    ("alpha range over atoms", "alpha_range"),
    ("gate spread over channels", "channel_std"),
)


def comparison_lines(first: Summary, second: Summary) -> list[str]:
    """Both models side by side and what the differences amount to."""
    lines = [f"{'':<40} {'model 1':>10} {'model 2':>10} {'change':>9}"]
    for label, name in COMPARED:
        a, b = getattr(first, name), getattr(second, name)
        change = f"{100 * (b - a) / abs(a):+8.1f}%" if abs(a) > 1e-8 else "        -"
        lines.append(f"{label:<40} {a:10.4f} {b:10.4f} {change}")
    verdicts = []
    for label, name, factor in (
        ("text is mixed in more", "cosine_after", 1.10),
        ("atoms differ more in how much text they take", "alpha_std", 1.20),
    ):
        a, b = getattr(first, name), getattr(second, name)
        if b - a > (factor - 1) * abs(a):
            verdicts.append(label)
    balance = [abs(math.log(max(s.ratio_before_norm, 1e-8))) for s in (first, second)]
    if balance[1] < 0.8 * balance[0]:
        verdicts.append("atoms and text are better balanced")
    return [*lines, "model 2: " + ("; ".join(verdicts) if verdicts else "no clear difference")]


def comparison_of_layers(first: Mapping[str, Summary], second: Mapping[str, Summary]) -> list[str]:
    """Both models at every layer after which both inject text; where there is none, their first ones."""
    shared = [layer for layer in first if layer in second]
    pairs = [(layer, layer) for layer in shared] or [(next(iter(first)), next(iter(second)))]
    lines: list[str] = []
    for one, other in pairs:
        lines += [one if one == other else f"model 1 at {one}, model 2 at {other}"]
        lines += comparison_lines(first[one], second[other])
    paired = [{one for one, _ in pairs}, {other for _, other in pairs}]
    for number, (layers, seen) in enumerate(zip((first, second), paired, strict=True), start=1):
        lines += [f"{layer}: in model {number} only" for layer in layers if layer not in seen]
    return lines


def text_scales(detector: CrystalDetector) -> dict[str, float]:
    """The scale of each fusion module."""
    state = detector.model.state_dict()
    return {name.split(".")[-2]: float(value) for name, value in state.items() if name.endswith("text_scale")}
