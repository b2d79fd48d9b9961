"""What PromptAD calls a class in text, and the anomalous states it knows for it (published lists, typos included)."""

from collections.abc import Sequence

CLASS_TEXT = {
    "macaroni1": "macaroni",
    "macaroni2": "macaroni",
    "pcb1": "printed circuit board",
    "pcb2": "printed circuit board",
    "pcb3": "printed circuit board",
    "pcb4": "printed circuit board",
    "pipe_fryum": "pipe fryum",
    "chewinggum": "chewing gum",
    "metal_nut": "metal nut",
}

GENERIC_STATES = (
    "damaged {}",
    "flawed {}",
    "abnormal {}",
    "imperfect {}",
    "blemished {}",
    "{} with flaw",
    "{} with defect",
    "{} with damage",
)

_MACARONI = "color spot; small chip around edge; small scratches; breakage; cracks"
_PCB = "bent; scratch; missing; melt"
# "X" stands for "{} with X"; an entry with {} is taken as it is.
_STATES = {
    "bottle": "large breakage; small breakage; contamination",
    "toothbrush": "defect; anomaly",
    "carpet": "hole; color stain; metal contamination; thread residue; thread; cut",
    "hazelnut": "crack; cut; hole; print",
    "leather": "color stain; cut; fold; glue; poke",
    "cable": "bent wire; missing part; missing wire; cut; poke",
    "capsule": "crack; faulty imprint; poke; scratch; {} squeezed with compression",
    "grid": "breakage; thread residue; thread; metal contamination; glue; a bent shape",
    "pill": "color stain; contamination; crack; faulty imprint; scratch; abnormal type",
    "transistor": "bent lead; cut lead; damage; misplaced transistor",
    "metal_nut": "a bent shape; color stain; a flipped orientation; scratch",
    "screw": "manipulated front; scratch neck; scratch head",
    "zipper": "broken teeth; fabric border; defect fabric; broken fabric; split teeth; squeezed teeth",
    "tile": "crack; glue strip; gray stroke; oil; rough surface",
    "wood": "color stain; hole; scratch; liquid",
    "candle": "melded wax; foreign particals; extra wax; chunk of wax missing; weird candle wick; "
    "damaged corner of packaging; different colour spot",
    "capsules": "scratch; discolor; misshape; leak; bubble",
    "cashew": "breakage; small scratches; burnt; stuck together; spot",
    "chewinggum": "corner missing; scratches; chunk of gum missing; colour spot; cracks",
    "fryum": "breakage; scratches; burnt; colour spot; fryum stuck together; colour spot",
    "macaroni1": _MACARONI,
    "macaroni2": _MACARONI,
    "pcb1": _PCB,
    "pcb2": _PCB,
    "pcb3": _PCB,
    "pcb4": "scratch; extra; missing; wrong place; damage; burnt; dirt",
    "pipe_fryum": "breakage; small scratches; burnt; stuck together; colour spot; cracks",
}


def class_text(class_name: str) -> str:
    """The words a class is called by in prompts; own classes lose their underscores."""
    return CLASS_TEXT.get(class_name, class_name.replace("_", " ").strip())


def state_templates(class_name: str, extra: Sequence[str] = ()) -> list[str]:
    """The generic states, the class's own (none for an unknown class) and `extra`, each with one {} for the class."""
    own = [word.strip() for word in _STATES.get(class_name, "").split(";") if word.strip()]
    specific = [*own, *(word.strip() for word in extra)]
    return [*GENERIC_STATES, *(word if "{}" in word else f"{{}} with {word}" for word in specific)]
