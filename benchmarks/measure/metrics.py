"""How near a decoded image is to the original: to the eye, in colour, and in stain.

Everything is computed from 8-bit RGB at full size; MS-SSIM also from reduced sizes. SSIM and MS-SSIM are those of red,
green and blue, averaged, as in papers on learned compression; those of luma alone are higher.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from histocodec.benchmarks.measure.stains import EOSIN, HEMATOXYLIN, stains
from histocodec.errors import UsageError
from histocodec.extras import requires_extra
from histocodec.fidelity import psnr, squared_error
from histocodec.slide import Pixels

Plane = NDArray[np.uint8] | NDArray[np.float32]  # (H, W)
Values = NDArray[np.float64]

SMALLEST = 16  # pixels on a side: the window of 11 and some positions for it
BAND = 128  # rows compared at once: what is computed from them stays in the processor's cache

RADIUS = 5  # of SSIM's window
WINDOW: Values = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / 1.5) ** 2)
WINDOW /= WINDOW.sum()
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM, from full size to a 16th; as published


@dataclass(frozen=True)
class Fidelity:
    """What is left of an image. An identical image has infinite `psnr` and `ms_ssim_db`."""

    psnr: float  # dB, over the samples of all channels
    ssim: float  # at most 1
    ms_ssim_db: float  # -10 log10(1 - MS-SSIM)
    delta_e: float  # mean CIEDE2000; about 1 is just noticeable
    hematoxylin_od: float  # mean absolute error in optical density, to the base of 10
    eosin_od: float


def fidelity(original: Pixels, decoded: Pixels) -> Fidelity:
    """Compare a decoded image with the original, both (H, W, 3) uint8.

    Raises UsageError where the shapes differ or a side is below SMALLEST, UnsupportedError without scikit-image.

    SSIM      Z. Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE Trans.
              Image Process. 13 (2004), with its window, and only positions where that fits
    MS-SSIM   Z. Wang, E. P. Simoncelli and A. C. Bovik, "Multi-scale structural similarity for image quality
              assessment", Asilomar (2003)
    CIEDE2000 G. Sharma, W. Wu and E. N. Dalal, "The CIEDE2000 color-difference formula", Color Res. Appl. 30 (2005)
    stains    see `histocodec.benchmarks.measure.stains`
    """
    if original.shape != decoded.shape or original.ndim != 3 or original.shape[2] != 3:
        raise UsageError(
            f"cannot compare images of shapes {original.shape} and {decoded.shape}; both must have the same (H, W, 3)"
        )
    if min(original.shape[:2]) < SMALLEST:
        height, width = original.shape[:2]
        raise UsageError(f"cannot compare images of {width} x {height} pixels; at least {SMALLEST} a side are needed")
    ssim, ms_ssim = _similarities(original, decoded)
    hematoxylin, eosin = _stain_errors(original, decoded)
    return Fidelity(
        psnr(squared_error(original, decoded), original.size),
        ssim,
        -10 * math.log10(1 - ms_ssim) if ms_ssim < 1 else math.inf,
        _delta_e(original, decoded),
        hematoxylin,
        eosin,
    )


def _similarities(a: Pixels, b: Pixels) -> tuple[float, float]:
    """SSIM and MS-SSIM. An image too small for all five scales has as many as the window fits into, with their weights
    scaled up."""
    scales = sum(min(a.shape[:2]) >> scale > 2 * RADIUS for scale in range(len(SCALE_WEIGHTS)))
    weights = np.array(SCALE_WEIGHTS[:scales]) * (sum(SCALE_WEIGHTS) / sum(SCALE_WEIGHTS[:scales]))
    channels = []
    for channel in range(3):
        pairs = zip(_octaves(a[:, :, channel]), _octaves(b[:, :, channel]), strict=True)
        # (scales, 2): SSIM, and SSIM without its luminance term
        values = np.array([_similarity(x, y) for x, y in islice(pairs, scales)])
        factors = np.append(values[:-1, 1], values[-1, 0])
        # Structure that is inverted on the whole would have no real root.
        channels.append((values[0, 0], np.prod(np.maximum(factors, 0) ** weights)))
    ssim, ms_ssim = np.mean(channels, axis=0)
    return float(ssim), float(ms_ssim)


def _octaves(plane: Plane) -> Iterator[Plane]:
    """The plane, then halved again and again by the mean of 2 x 2; odd last rows and columns are left out."""
    while True:
        yield plane
        height, width = plane.shape[0] & ~1, plane.shape[1] & ~1
        even, odd = plane[0:height:2, :width], plane[1:height:2, :width]
        rows: NDArray[np.float32] = np.add(even, odd, dtype=np.float32)
        plane = (rows[:, 0::2] + rows[:, 1::2]) / np.float32(4)


def _similarity(a: Plane, b: Plane) -> tuple[float, float]:
    """The mean of SSIM, and of its contrast and structure terms alone."""
    total = contrast = 0.0
    rows, columns = a.shape[0] - 2 * RADIUS, a.shape[1] - 2 * RADIUS
    for top in range(0, rows, BAND):
        bottom = min(top + BAND, rows) + 2 * RADIUS
        x, y = a[top:bottom].astype(np.float64), b[top:bottom].astype(np.float64)
        mean_x, mean_y = _windowed(x), _windowed(y)
        squares, product = mean_x**2 + mean_y**2, mean_x * mean_y
        variances, covariance = _windowed(x**2 + y**2) - squares, _windowed(x * y) - product
        structure = (2 * covariance + C2) / (variances + C2)
        contrast += float(structure.sum())
        total += float((structure * (2 * product + C1) / (squares + C1)).sum())
    return total / (rows * columns), contrast / (rows * columns)


def _windowed(plane: Values) -> Values:
    """The weighted mean in every window that fits."""
    for axis in (0, 1):
        length = plane.shape[axis] - 2 * RADIUS
        parts = [plane[i : i + length] if axis == 0 else plane[:, i : i + length] for i in range(len(WINDOW))]
        plane = WINDOW[0] * parts[0]
        for weight, part in zip(WINDOW[1:], parts[1:], strict=True):
            plane += weight * part
    return plane


def _delta_e(a: Pixels, b: Pixels) -> float:
    with requires_extra("bench"):
        from skimage.color import deltaE_ciede2000, rgb2lab
    height, width = a.shape[:2]
    total = 0.0
    for top in range(0, height, BAND):
        lab_a, lab_b = (rgb2lab(image[top : top + BAND] / np.float32(255)) for image in (a, b))
        total += float(deltaE_ciede2000(lab_a, lab_b).sum(dtype=np.float64))
    return total / float(height * width)


def _stain_errors(a: Pixels, b: Pixels) -> tuple[float, float]:
    total = np.zeros(3)
    for top in range(0, a.shape[0], BAND):
        difference = np.abs(stains(a[top : top + BAND]) - stains(b[top : top + BAND]))
        total += difference.sum((0, 1), dtype=np.float64)
    means = total / (a.shape[0] * a.shape[1])
    return float(means[HEMATOXYLIN]), float(means[EOSIN])
