"""How far two images are apart, exactly, and what that is in decibels."""

import math

import numpy as np

from histocodec.slide import Pixels


def psnr(squared_error: float, samples: float) -> float:
    """dB against 255; infinite where nothing differs."""
    return 10 * math.log10(255**2 * samples / squared_error) if squared_error else math.inf


def squared_error(a: Pixels, b: Pixels) -> int:
    """The sum over all samples, exactly."""
    difference = np.subtract(a, b, dtype=np.int32)
    return int(np.square(difference, out=difference).sum(dtype=np.int64))
