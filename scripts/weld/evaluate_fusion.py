"""Late fusion of Causal-FiLM and the video auto-encoder, or of any detectors: z-scores, ranks or p-values added up.

python scripts/weld/evaluate_fusion.py --causal-checkpoint A/best_model.pth --video-checkpoint B/best_model.pt
python scripts/weld/evaluate_fusion.py --checkpoints A/best_model.pth C/best_model.pth --method fisher
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from anomaly_lib.command_line import command
from anomaly_lib.files import write_json
from anomaly_lib.systems.weld.video_ae.options import FusionArgs


def run(args: FusionArgs) -> None:
    """Score, print the AUROC of each and of the fusion, write fusion.json."""
    from anomaly_lib.systems.registry import SYSTEMS
    from anomaly_lib.systems.weld.late_fusion import evaluate_fusion

    result = evaluate_fusion(args, lambda path: SYSTEMS.load(path, device=args.device))
    for note in result.notes:
        print(note)
    for name, value in result.metrics.items():
        print(f"{name:>20} {value:.4f}")
    if args.output_dir:
        path = Path(args.output_dir) / "fusion.json"
        write_json(path, asdict(result))
        print(f"results in {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, leave with an exit code."""
    return command(FusionArgs, run, argv, prog="evaluate_fusion.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
