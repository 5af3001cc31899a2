"""How much two images differ: squared error, exactly, and PSNR in decibels. PSNR is written out nowhere else."""

import math

import numpy as np
from numpy.typing import NDArray

from histocodec.slide import Pixels

PEAK_SQUARED = 255**2  # of the largest grey value


def psnr(squared_error: float, samples: float) -> float:
    """The PSNR in dB of a sum of squared differences over `samples` grey values; infinite where the sum is zero.
    `psnr(mean, 1)` takes a mean instead."""
    return 10 * math.log10(PEAK_SQUARED * samples / squared_error) if squared_error else math.inf


def psnr_map(squared_error: NDArray[np.float64], samples: NDArray[np.float64]) -> NDArray[np.float32]:
    """`psnr` of each element of two arrays of one shape, as float32. NaN where either is NaN."""
    with np.errstate(divide="ignore"):
        return (10 * np.log10(PEAK_SQUARED * samples / squared_error)).astype(np.float32)


def mean_squared_error(decibels: float) -> float:
    """The mean squared difference, in grey values², of images with this PSNR: the inverse of `psnr`."""
    return PEAK_SQUARED * float(10 ** (-decibels / 10))


def squared_error(a: Pixels, b: Pixels) -> int:
    """The sum of squared differences over all samples of two images of one shape, uint8, exactly."""
    difference = np.subtract(a, b, dtype=np.int32)
    return int(np.square(difference, out=difference).sum(dtype=np.int64))
