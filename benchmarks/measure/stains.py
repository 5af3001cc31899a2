"""Separate stains: how much hematoxylin and eosin there is in each pixel, by a fixed unmixing of optical densities.

A. C. Ruifrok and D. A. Johnston, "Quantification of histochemical staining by color deconvolution", Anal. Quant.
Cytol. Histol. 23 (2001). The matrix is that of scikit-image's `rgb2hed`, and so is the rule that less than no stain is
none; its unit there is log(10⁻⁶), so these values are six times as large.
"""

import numpy as np
from numpy.typing import NDArray

from histocodec.slide import Pixels

Stains = NDArray[np.float32]  # (H, W, 3): hematoxylin, eosin and DAB
HEMATOXYLIN, EOSIN = 0, 1

# Optical densities in red, green and blue of hematoxylin, eosin and DAB, as published.
RGB_FROM_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAINS_FROM_RGB = np.linalg.inv(RGB_FROM_STAINS).astype(np.float32)

# Optical density of each grey value, to the base of 10. A 0 counts as a 1: between the two, noise of one grey value
# would count as more stain than there ever is.
DENSITIES = -np.log10(np.maximum(np.arange(256), 1) / 255).astype(np.float32)


def stains(pixels: Pixels) -> Stains:
    """Separate pixels (H, W, 3) uint8 into stains (H, W, 3) float32, in optical density to the base of 10."""
    amounts: Stains = DENSITIES[pixels] @ STAINS_FROM_RGB
    return np.maximum(amounts, 0, out=amounts)
