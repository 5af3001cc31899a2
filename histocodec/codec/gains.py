"""Between y, as the analysis gives it, and the integers that are coded: a gain for each channel, and rounding.

A larger gain means finer steps. The gains of each quality are part of the model (`ModelWeights.gain`), and so are the
inverse gains, which are trained and are not exactly the reciprocals.
"""

import numpy as np
from numpy.typing import NDArray


def quantise(
    y: NDArray[np.float32], gain: NDArray[np.float32], dtype: np.dtype[np.signedinteger]
) -> NDArray[np.signedinteger]:
    """y (C, h, w) float32 before gains → latents of `dtype`: gain · y, rounded to nearest, ties up, and clipped to
    what `dtype` holds. `gain` is (C,)."""
    limits = np.iinfo(dtype)
    rounded = np.floor(y * gain[:, None, None] + 0.5)
    return np.asarray(rounded.clip(limits.min, limits.max), dtype)


def dequantise(latents: NDArray[np.generic], inverse_gain: NDArray[np.float32]) -> NDArray[np.float32]:
    """Latents (C, h, w) → float32 with the gain (C,) undone, as the synthesis takes them."""
    scaled: NDArray[np.float32] = latents.astype(np.float32) * inverse_gain[:, None, None]
    return scaled
