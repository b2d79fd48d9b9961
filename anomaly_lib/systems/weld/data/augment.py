"""Training-time changes of weld inputs, applied to one modality's tensors before the frozen encoders."""

import torch
import torch.nn.functional as F

from anomaly_lib.types import Sample


def chance(probability: float) -> bool:
    return float(torch.rand(())) < probability


def augment_weld(sample: Sample) -> Sample:
    """Randomly change whichever of video, images and audio the sample holds; labels and masks stay."""
    changes = {"video": augment_video, "images": augment_images, "audio": augment_audio}
    return {name: changes[name](value) if name in changes else value for name, value in sample.items()}


def augment_images(images: torch.Tensor) -> torch.Tensor:  # [V, 3, S, S], normalised
    """Mirror, resized crop, brightness and contrast, noise: the same for all views of a weld."""
    if chance(0.5):
        images = images.flip(-1)
    if chance(0.3):
        size = images.shape[-1]
        side = max(2, int(size * float(torch.empty(()).uniform_(0.8, 1.0)) ** 0.5))
        top, left = (int(torch.randint(0, size - side + 1, ())) for _ in range(2))
        crop = images[..., top : top + side, left : left + side]
        images = F.interpolate(crop, (size, size), mode="bilinear", align_corners=False)
    contrast, brightness = torch.empty(2).uniform_(-0.2, 0.2).tolist()
    images = images * (1 + contrast) + brightness
    return images + torch.randn_like(images) * 0.02 if chance(0.2) else images


def augment_video(video: torch.Tensor) -> torch.Tensor:  # [T, C, S, S]
    """Mirror and brightness of the whole clip, a small roll in time."""
    if chance(0.5):
        video = video.flip(-1)
    contrast, brightness = torch.empty(2).uniform_(-0.15, 0.15).tolist()
    video = video * (1 + contrast) + brightness
    return video.roll(int(torch.randint(-2, 3, ())), 0) if chance(0.2) else video


def augment_audio(audio: torch.Tensor) -> torch.Tensor:  # [1, mels, F]
    """Noise, and masked bands of time (up to 15 %) and frequency (up to 20 %), filled with the minimum."""
    audio = audio + 0.01 * audio.std() * torch.randn_like(audio)
    for dim, share in ((-1, 0.15), (-2, 0.20)):
        if chance(0.5):
            length = audio.shape[dim]
            width = int(torch.randint(0, max(1, int(length * share)) + 1, ()))
            start = int(torch.randint(0, length - width + 1, ()))
            audio = audio.clone()
            audio.narrow(dim, start, width).fill_(float(audio.min()))
    return audio
