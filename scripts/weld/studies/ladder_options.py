"""The options of the baseline ladder: those of V4, and which models and seeds."""

from dataclasses import dataclass, replace
from typing import Optional

from anomaly_lib.config import arg, override
from anomaly_lib.systems.weld.supcon.options import Args as QuadArgs

MODELS = ("A", "B-video", "B-images", "B-audio", "B-sensors", "C-late", "C-mid", "D")


@dataclass
class Args(QuadArgs):
    """The ladder: the options of V4, and which models and seeds."""

    demo_train: int = override(QuadArgs, "demo_train", 48)
    demo_good: int = override(QuadArgs, "demo_good", 24)
    models: list[str] = arg(list(MODELS), "which models; 'fusion' = late, mid and cross-attention only")
    seeds: list[int] = arg([0, 1, 2], "one row per model and seed", type=int)
    baseline_epochs: int = arg(50, "epochs of A, B and C", at_least=1)
    baseline_batch: Optional[int] = arg(
        None, "batch size of A, B and C; None = 32 (built-in data: 8)", type=int, at_least=1
    )
    peak_lr: float = arg(1e-3, "one-cycle peak of A, B and C (published, at full size: 1e-4)", at_least=0)
    spectrum_fft: Optional[int] = arg(
        None, "A: samples of an STFT window; None = 2048 (built-in data: 512)", type=int, at_least=16
    )
    spectrum_frames: Optional[int] = arg(
        None, "A: spectrum frames of a run; None = 256 (built-in data: 64)", type=int, at_least=2
    )
    audio_width: Optional[int] = arg(
        None, "A: channels of the audio auto-encoder; None = 1024 (built-in data: 128)", type=int, at_least=1
    )
    video_window: int = arg(1, "A: steps of the video score's moving average (2 s at the sampling used)", at_least=1)
    results: Optional[str] = arg(
        None, "folder of the table; None = runs/weld_baselines or runs/weld_extensions", type=str
    )


def ladder_sizes(args: Args) -> Args:
    """Sizes of A that are decided by the data."""
    fft, frames, width, batch = (2048, 256, 1024, 32) if args.data_path else (512, 64, 128, 8)
    return replace(
        args,
        baseline_batch=args.baseline_batch or batch,
        spectrum_fft=args.spectrum_fft or fft,
        spectrum_frames=args.spectrum_frames or frames,
        audio_width=args.audio_width or width,
    )
