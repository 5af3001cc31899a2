"""Whether what is counted in the original is still there in the decoded image: nuclei, by a classical method.

    hematoxylin ─ smooth ─ threshold ─ fill pores, drop specks ─ distance to the edge ─ watershed from its peaks

It does not match a trained network and need not: it is deterministic, has no weights that could favour a codec, and
depends on what segmentation depends on: contrast in hematoxylin, edges, and gaps between neighbours. The threshold is
Otsu's (IEEE Trans. Syst. Man Cybern. 9, 1979), of each image by itself: whoever analyses decoded slides has no original
to take it from, so a codec that shifts it has to answer for that.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histocodec.benchmarks.measure.stains import HEMATOXYLIN, stains
from histocodec.extras import requires_extra
from histocodec.slide import Pixels

Labels = NDArray[np.int32]  # (H, W); 0 where there is no nucleus

DEFAULT_MPP = 0.5  # a 20x scan
SMOOTHING = 0.75  # microns, standard deviation: chromatin's texture goes, the outline stays
LEAST_DENSITY = 0.1  # of hematoxylin: without nuclei, Otsu would split noise from noise
LEAST_AREA = 12.0  # square microns; a small lymphocyte has 30
MOST_AREA = 300.0  # square microns, a disc of 20 across; what is larger is keratin, ink or a fold
LEAST_DISTANCE = 2.5  # microns between centres; two nearer peaks belong to one outline
OVERLAP = 0.5  # intersection over union from which two are the same nucleus


@dataclass(frozen=True)
class NucleiAgreement:
    """How the nuclei of a decoded image agree with those of the original. Where neither has any, they agree."""

    original: int  # how many
    decoded: int
    count_error: float  # difference of the counts, as a share of the original's (of 1 where that has none)
    dice: float  # of the areas: 1 the same, 0 nothing in common
    f1: float  # of the nuclei that have a partner with at least half of their union in common


def agreement(original_pixels: Pixels, decoded_pixels: Pixels, *, mpp: float = DEFAULT_MPP) -> NucleiAgreement:
    """Segment both images, (H, W, 3) uint8 at `mpp` microns per pixel, and compare their nuclei.

    Raises UnsupportedError without scikit-image and SciPy.
    """
    return compare(segment(original_pixels, mpp=mpp), segment(decoded_pixels, mpp=mpp))


def segment(pixels: Pixels, *, mpp: float = DEFAULT_MPP) -> Labels:
    """Find nuclei in pixels (H, W, 3) uint8 at `mpp` microns per pixel: labels (H, W) int32, numbered from 1.

    Raises UnsupportedError without scikit-image and SciPy.
    """
    with requires_extra("bench"):
        from scipy import ndimage
        from skimage.feature import peak_local_max
        from skimage.filters import threshold_otsu
        from skimage.segmentation import relabel_sequential, watershed
    density = ndimage.gaussian_filter(stains(pixels)[:, :, HEMATOXYLIN], SMOOTHING / mpp)
    mask = density > max(float(threshold_otsu(density)), LEAST_DENSITY)
    mask = _sized(ndimage.label(~mask)[0], mpp, LEAST_AREA, math.inf) == 0  # pale chromatin, but no lumen
    mask = _sized(ndimage.label(mask)[0], mpp, LEAST_AREA, math.inf) > 0
    # An outline's small dents make small peaks.
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), SMOOTHING / mpp)
    pieces = ndimage.label(mask)[0]
    min_distance = max(1, round(LEAST_DISTANCE / mpp))
    peaks = peak_local_max(distance, min_distance=min_distance, labels=pieces, exclude_border=False)
    seeds = np.zeros(mask.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = _sized(watershed(-distance, seeds, mask=mask), mpp, LEAST_AREA, MOST_AREA)
    return np.asarray(relabel_sequential(labels)[0], np.int32)


def compare(original: Labels, decoded: Labels) -> NucleiAgreement:
    """Compare two segmentations (H, W), each numbered from 1 without gaps."""
    counts = int(original.max(initial=0)), int(decoded.max(initial=0))
    areas = int(np.count_nonzero(original)), int(np.count_nonzero(decoded))
    common = int(np.count_nonzero((original > 0) & (decoded > 0)))
    return NucleiAgreement(
        *counts,
        abs(counts[1] - counts[0]) / max(counts[0], 1),
        2 * common / sum(areas) if sum(areas) else 1.0,
        2 * _partners(original, decoded) / sum(counts) if sum(counts) else 1.0,
    )


def _partners(original: Labels, decoded: Labels) -> int:
    """How many nuclei have a partner with at least OVERLAP of their union in common."""
    columns = int(decoded.max(initial=0)) + 1
    pairs = original.astype(np.int64) * columns + decoded
    pair, common = np.unique(pairs[(original > 0) & (decoded > 0)], return_counts=True)
    in_original, in_decoded = pair // columns, pair % columns
    union = np.bincount(original.ravel())[in_original] + np.bincount(decoded.ravel())[in_decoded] - common
    same = common >= OVERLAP * union
    # Two halves of one nucleus would both have exactly half of its area.
    return min(len(np.unique(in_original[same])), len(np.unique(in_decoded[same])))


def _sized(labels: Labels, mpp: float, least: float, most: float) -> Labels:
    """Keep only labels that have from `least` to `most` square microns."""
    areas = np.bincount(labels.ravel()) * mpp**2
    return np.where(((areas < least) | (areas > most))[labels], 0, labels)
