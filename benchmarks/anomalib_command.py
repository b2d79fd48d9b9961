"""anomalib's PatchCore or PaDiM from files to metrics, for bench_detect.py: MODEL DATA WEIGHTS are its arguments.

The last line printed is its metrics as JSON. Pictures, thresholds and a pass over validation images are switched off.
"""

import json
import sys
import tempfile
from typing import Any

import torch

SIZE = 224


def model_of(name: str, weights: str) -> Any:
    """The Lightning module on given weights of a ResNet-18, with the metrics that this library reports."""
    from anomalib.metrics import AUPR, AUPRO, AUROC, Evaluator, F1Max
    from anomalib.models import Padim, Patchcore

    kind = Patchcore if name == "patchcore" else Padim
    image, pixel = ["pred_score", "gt_label"], ["anomaly_map", "gt_mask"]
    metrics = [
        made(fields=fields, prefix=prefix)
        for fields, prefix in ((image, "image_"), (pixel, "pixel_"))
        for made in ((AUROC, AUPR, F1Max) if prefix == "image_" else (AUROC, AUPR, F1Max, AUPRO))
    ]
    model = kind(
        backbone="resnet18",
        pre_trained=False,
        pre_processor=kind.configure_pre_processor(image_size=(SIZE, SIZE)),
        post_processor=False,
        visualizer=False,
        evaluator=Evaluator(test_metrics=metrics),
    )
    net: Any = model.model.feature_extractor.feature_extractor
    state = torch.load(weights, weights_only=True)
    missing = net.load_state_dict(state, strict=False).missing_keys
    assert not [name for name in missing if "num_batches" not in name], missing
    return model


def main(name: str, data: str, weights: str) -> int:
    from anomalib.data import MVTecAD
    from anomalib.engine import Engine

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            accelerator="cpu", devices=1, logger=False, default_root_dir=folder, enable_progress_bar=False,
            limit_val_batches=0, num_sanity_val_steps=0,
        )  # fmt: skip
        images = MVTecAD(root=data, category="woven", num_workers=0, val_split_mode="none")
        model = model_of(name, weights)
        engine.fit(model=model, datamodule=images)
        (found,) = engine.test(model=model, datamodule=images, verbose=False)
    print(json.dumps({key: float(value) for key, value in found.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
