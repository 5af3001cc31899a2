"""Which z a chunk is coded with: any will do, and `h_a` only proposes one.

A reader needs no `h_a`, so a writer with time tries others. Each z is moved one step towards what its table expects,
where z and the latents that it describes become cheaper together; no latent changes, and so no pixel.
"""

import numpy as np
from numpy.typing import NDArray

from histocodec.codec.chunk import HyperChunkCodec
from histocodec.entropy.cost import symbol_bits
from histocodec.models.prior.graph import MEAN_BITS

APART = 2  # every other z of a row and a column is moved at a time, and judged by the latents of those around it, too
DEAREST = 3  # channels of z that are tried: two thirds of the gain of all 32, in a tenth of the time
LEAST_SHARE = 0.003  # of all bits: a channel of z that costs less is not worth the time

HyperLatents = NDArray[np.int64]
Bits = NDArray[np.float64]


def cheapest_hyper_latents(codec: HyperChunkCodec, latents: NDArray[np.signedinteger], quality: int) -> HyperLatents:
    """z (Cz, n/4, n/4) with which latents (C, n, n), not all zero, take the fewest bits that were found."""
    z = codec.hyper_latents(latents, quality)
    own, of_y = _bits(codec, latents, quality, z)
    least = LEAST_SHARE * (own.sum() + of_y.sum())
    by_channel = own.sum(axis=(1, 2))
    dearest = [channel for channel in np.argsort(-by_channel)[:DEAREST] if by_channel[channel] > least]
    expected = codec.weights.arrays["prior.hyper_mean"][quality] / 2**MEAN_BITS
    rows, columns = of_y.shape
    for channel in dearest:
        for i in range(APART):
            for j in range(APART):
                some = channel, slice(i, rows, APART), slice(j, columns, APART)
                step = np.rint(expected[channel] - z[some]).clip(-1, 1).astype(np.int64)
                if not step.any():
                    continue
                tried = z.copy()
                tried[some] += step
                own_tried, of_y_tried = _bits(codec, latents, quality, tried)
                change = (own_tried - own).sum(axis=0) + around_each(of_y_tried - of_y)
                cheaper = change[some[1:]] < 0
                if not cheaper.any():
                    continue
                tried[some] = z[some] + np.where(cheaper, step, 0)
                own_tried, of_y_tried = _bits(codec, latents, quality, tried)
                if own_tried.sum() + of_y_tried.sum() < own.sum() + of_y.sum():
                    z, own, of_y = tried, own_tried, of_y_tried
    return z


def _bits(
    codec: HyperChunkCodec, latents: NDArray[np.signedinteger], quality: int, z: HyperLatents
) -> tuple[Bits, Bits]:
    """The bits of each z that is coded (Cz, rows, columns), and of the latents of each of their places."""
    tables = codec.weights.tables
    first, *steps = codec.segments(latents, quality, z=z)
    _, cell_rows, cell_columns = first.extent
    rows, columns = -(-cell_rows // 2), -(-cell_columns // 2)
    own = symbol_bits(first.values - first.whole, first.tables, tables).reshape(-1, rows, columns)
    of_y = np.zeros((2 * rows, 2 * columns))
    for step in steps:
        bits = symbol_bits(step.values - step.whole, step.tables, tables)
        of_y[:cell_rows, :cell_columns] += bits.reshape(-1, cell_rows, cell_columns).sum(axis=0)
    return own.astype(np.float64), of_y.reshape(rows, 2, columns, 2).sum(axis=(1, 3))


def around_each(bits: Bits) -> Bits:
    """The sum over each place and those next to it, of any (rows, columns)."""
    rows, columns = bits.shape
    padded = np.pad(bits, 1)
    return np.asarray(sum(padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)))
