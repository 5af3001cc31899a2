"""Rate and distortion of a model in training, on whole held-out images, by its own estimate of the bits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from histocodec.fidelity import psnr
from histocodec.models.hyper import HyperModel
from histocodec.train.data.patches import TrainingImage

EVALUATED_QUALITIES = (0, 20, 40, 60, 80, 100)
LARGEST = 1024  # largest side in pixels; of a larger image the middle is taken
LEAST_MSE = 1e-6  # so that PSNR stays finite


@dataclass(frozen=True)
class Point:
    """Means over images at one quality: bits per pixel, and PSNR in dB."""

    quality: int
    bpp: float
    psnr: float


@torch.no_grad()
def rate_distortion_points(model: HyperModel, images: Sequence[TrainingImage]) -> list[Point]:
    """A point for each of EVALUATED_QUALITIES; PSNR is that of the rounded RGB pixels, averaged over images."""
    model.eval()
    device = next(model.parameters()).device
    points = []
    for quality in EVALUATED_QUALITIES:
        rates, fidelities = [], []
        for image in images:
            height, width = (min(LARGEST, side) // 64 * 64 for side in image.pixels.shape[1:])
            top, left = ((s - w) // 2 for s, w in zip(image.pixels.shape[1:], (height, width), strict=True))
            pixels = image.pixels[:, top : top + height, left : left + width].to(device).float()
            mean, std = image.mean[:, None, None].to(device), image.std[:, None, None].to(device)
            output = model(((pixels - mean) / std)[None], torch.tensor([float(quality)], device=device))
            decoded = (output.pixels[0] * std + mean).round().clamp(0, 255)
            mse = float((decoded - pixels).square().mean())
            rates.append(float(output.y_bits + output.z_bits) / (height * width))
            fidelities.append(psnr(max(mse, LEAST_MSE), 1))
        points.append(Point(quality, sum(rates) / len(rates), sum(fidelities) / len(fidelities)))
    return points
