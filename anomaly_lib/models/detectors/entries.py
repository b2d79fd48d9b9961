"""The detectors that come with the library: name, options, module, published values. This file loads no torch."""

from anomaly_lib.config import Preset
from anomaly_lib.models.detectors.configs import (
    DraemConfig,
    DraemSevNetConfig,
    PadimConfig,
    PatchCoreConfig,
    ReverseDistillationConfig,
)
from anomaly_lib.models.detectors.family_configs import FAMILY
from anomaly_lib.models.detectors.registry import Entry, add

DEMO_CLIP = {"backbone": "demo-clip", "layers": ["layer.1", "layer.3"]}
RANDOM_RESNET = {"backbone": "resnet18", "weights": "random"}
PAPER_FOCAL = Preset(when={"protocol": "paper"}, then={"focal_alpha": 1.0, "focal_weight": 0.5})
"""anomalib with kornia >= 0.7, whose mean is over both entries of a pixel: half of the mean over pixels."""

add(
    Entry(
        "patchcore",
        PatchCoreConfig,
        "patchcore:PatchCore",
        leaves_out=True,
        published={"backbone": "wide_resnet50_2", "batch_size": 32},
        demo=DEMO_CLIP,
        small=RANDOM_RESNET | {"coreset_size": 60},
        presets=[Preset(when={"protocol": "paper"}, then={"upsample": "nearest", "rows": "raw"})],  # anomalib
    )
)
add(
    Entry(
        "padim",
        PadimConfig,
        "padim:Padim",
        leaves_out=True,
        placed=True,
        published={"backbone": "resnet18", "batch_size": 32},
        demo=DEMO_CLIP,
        small=RANDOM_RESNET,
        presets=[
            Preset(when={"backbone": "wide_resnet50_2"}, then={"features": 550}),
            Preset(when={"protocol": "paper"}, then={"rows": "raw"}),
        ],
    )
)
add(
    Entry(
        "reverse_distillation",
        ReverseDistillationConfig,
        "reverse_distillation:ReverseDistillation",
        trained=True,
        published={"epochs": 200, "batch_size": 16, "learning_rate": 0.005, "momentum": 0.5},
        demo=RANDOM_RESNET | {"epochs": 3},
        small=RANDOM_RESNET | {"epochs": 1},
    )
)
add(
    Entry(
        "draem",
        DraemConfig,
        "draem:Draem",
        frozen=False,
        trained=True,
        published={"epochs": 700, "batch_size": 8, "learning_rate": 1e-4},
        demo={"repair_width": 16, "segment_width": 16, "epochs": 20},
        small={"repair_width": 8, "segment_width": 8, "epochs": 1},
        presets=[PAPER_FOCAL],
    )
)
add(
    Entry(
        "draem_sevnet",
        DraemSevNetConfig,
        "draem_sevnet:DraemSevNet",
        frozen=False,
        trained=True,
        published={"epochs": 50, "batch_size": 16, "learning_rate": 1e-4},
        demo={"repair_width": 16, "segment_width": 16, "epochs": 20},
        small={"repair_width": 8, "segment_width": 8, "epochs": 1, "patch_width_range": [8, 24]},
        presets=[PAPER_FOCAL, Preset(when={"protocol": "paper"}, then={"severity_target": "raw"})],
    )
)
for name, row in FAMILY.items():
    add(
        Entry(
            name,
            row["config"],
            row["module"],
            leaves_out=not row.get("transductive", False),
            transductive=row.get("transductive", False),
            placed=row.get("placed", False),
            published=row["training"],
            demo={"backbone": "demo-clip"} | row["demo"],
            small={"backbone": "tiny-clip", "weights": "random"} | row.get("small", row["demo"]),
            presets=row.get("presets", ()),
        )
    )
