"""Habits of the published program: where it writes, how it resumes, and options it takes without using them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from anomaly_lib.config import ANY, FALSE, TRUE, Options, default_of, shown
from anomaly_lib.fusion.config import CrossModalConfig, FineGrainedConfig, MiddleFusionConfig
from anomaly_lib.fusion.names import LATE_FUSION_NAMES
from anomaly_lib.models.crystal.config import ALIGNNConfig, CrystalFusionConfig
from anomaly_lib.systems.crystal.data.settings import property_name
from anomaly_lib.systems.crystal.options import Args, UnusedArgs


def property_folder(args: Args) -> Path | None:
    """<output_dir>/<property>/, where the published program writes; None without output_dir=."""
    return Path(args.output_dir) / property_name(args.property) if args.output_dir else None


def with_resume(args: Args, checkpoint: Path) -> Args:
    """``resume`` 0 and 1 in this library's words: 1 goes on from the latest state, if there is any."""
    word = str(args.resume).lower()
    if word not in TRUE | FALSE:
        return args
    return replace(args, resume="latest" if word in TRUE and checkpoint.is_file() else None)


# -- options without meaning ----------------------------------------------------------------------------------------


def _names(*owners: type[Options], but: Collection[str] = ()) -> list[str]:
    return [f.name for owner in owners for f in fields(owner) if f.name not in but]


_GRAPH, _MIDDLE = _names(ALIGNNConfig), _names(MiddleFusionConfig)
_PARTS = ("train", "val", "test")
ACT_WITH: Sequence[tuple[Sequence[str], Mapping[str, Any]]] = (
    (_GRAPH, {"modality": ("both", "graph")}),
    (_names(CrystalFusionConfig, but=_GRAPH), {"modality": "both"}),
    ([*_MIDDLE, "middle_fusion_layers", "use_improved_middle_fusion"], {"use_middle_fusion": True}),
    (
        ["middle_fusion_use_residual_scaling", "middle_fusion_use_dynamic_gating", "middle_fusion_initial_node_scale"],
        {"use_improved_middle_fusion": True},
    ),
    (["middle_fusion_initial_scale"], {"middle_fusion_use_learnable_scale": True}),
    (_names(FineGrainedConfig), {"use_fine_grained_attention": True}),
    (_names(CrossModalConfig, but=["cross_modal_dropout"]), {"use_cross_modal": True}),
    (["late_fusion_rank"], {"late_fusion_type": ("bilinear", "tucker")}),
    (["late_fusion_output_dim"], {"late_fusion_type": LATE_FUSION_NAMES}),
    (["contrastive_weight", "contrastive_temperature"], {"use_contrastive": True}),
    (["classification_threshold"], {"classification": True}),
    (["warmup_steps"], {"protocol": "clean"}),
    (["use_preprocessed"], {"data_path": ANY}),
    (["preprocessed_dir"], {"use_preprocessed": True}),
    ([f"n_{part}" for part in _PARTS], {"split_file": None}),
    *(([f"{part}_ratio"], {"split_file": None, f"n_{part}": None}) for part in _PARTS),
)
"""Options, and what others must be for them to act. The published program takes them alone, and so does this one."""


def without_meaning(args: Args) -> list[str]:
    """A line for each published option that was given and changes nothing, at all or beside the others given."""
    usual = Args.implied({name: getattr(args, name) for name in ("data_path", "protocol", "classification")})
    given = {f.name for f in fields(Args) if getattr(args, f.name) not in (default_of(f), usual.get(f.name))}
    lines = [_line(args, name) for name in _names(UnusedArgs) if name in given]
    dropped = {} if args.late_fusion_type in LATE_FUSION_NAMES else {"use_cross_modal": True}
    for names, needed in [*ACT_WITH, (["cross_modal_dropout"], dropped)]:
        unmet = [f"{name}={_wish(value)}" for name, value in needed.items() if not _met(getattr(args, name), value)]
        lines += [_line(args, name, unmet) for name in names if name in given and unmet]
    return lines


def _line(args: Args, name: str, unmet: Sequence[str] = ()) -> str:
    without = f" without {' and '.join(unmet)}" if unmet else ""
    return f"{name}={shown(getattr(args, name))} has no meaning here{without}"


def _met(value: Any, wanted: Any) -> bool:
    if wanted is ANY:
        return value is not None
    return value in wanted if isinstance(wanted, tuple) else bool(value == wanted)


def _wish(wanted: Any) -> str:
    return "..." if wanted is ANY else "|".join(wanted) if isinstance(wanted, tuple) else str(wanted)
