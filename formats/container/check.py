"""What ties a chunk to its place: a check of its decoded latents, which the maps keep for every chunk.

It names the values and not the bytes that code them. So it holds for a chunk that another program decoded and wrote
again unchanged, and not for a chunk of another place, slide or quality.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from histocodec.kernels.jit import jit

Plane = NDArray[np.uint32]
WORD = 8  # bytes of latents that are looked at together


def latents_check(y: NDArray[np.signedinteger], quality: int) -> int:
    """The check of a chunk: its quality and its latents `y` (C, n, n), weighted and summed modulo 2^32, so that the
    check names the decoded values and not the bytes that code them. Weight 0 is the quality's, weight i + 1 that of
    latent i in C order; all are odd, so a single wrong value never goes unnoticed. Last channels that are 0 may be left
    out."""
    weights, channels, last = check_weights(y.size), len(y), y.transpose(1, 2, 0)
    if last.flags.c_contiguous and channels * y.itemsize % WORD == 0:  # as native kernels leave it
        values = last.reshape(-1, channels)
        total = _sum_few_products(values, values.view(np.int64), weights[1:])
    else:
        total = _sum_products(np.ascontiguousarray(y).reshape(-1), weights[1:])
    return (quality * int(weights[0]) + int(total)) & 0xFFFFFFFF


@lru_cache(maxsize=4)
def check_weights(count: int) -> Plane:
    """The weights of a check of `count` latents: (count + 1,) uint32. The mixing is that of C. Wellons's lowbias32."""
    x = np.arange(1, count + 2, dtype=np.uint32)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    x |= np.uint32(1)
    x.flags.writeable = False
    return x


@jit
def _sum_products(y: NDArray[np.signedinteger], weights: Plane) -> np.uint32:
    total = np.uint32(0)
    for i in range(y.size):
        total += np.uint32(np.int32(y[i])) * weights[i]
    return total


@jit
def _sum_few_products(y: NDArray[np.signedinteger], words: NDArray[np.int64], weights: Plane) -> np.uint32:
    """`_sum_products` of y (positions, channels), most of which are 0; `words` are the same bytes."""
    total, per, positions = np.uint32(0), y.shape[1] // words.shape[1], y.shape[0]
    for position in range(positions):
        for word in range(words.shape[1]):
            if words[position, word] != 0:
                for channel in range(per * word, per * word + per):
                    value = np.uint32(np.int32(y[position, channel]))
                    total += value * weights[channel * positions + position]
    return total
