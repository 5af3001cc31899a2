"""Hyper-latent search: the z that codes a chunk in the fewest bits. `h_a` only proposes one; a decoder takes any.

Since a reader needs no `h_a`, a writer that has time may look for a better z. Each z is moved one step towards the
value that its table expects, if z and the latents that it describes become cheaper together. The latents stay as they
are, and so do the pixels.
"""

import numpy as np
from numpy.typing import NDArray

from histocodec.codec.chunk import HyperChunkCodec
from histocodec.entropy.cost import symbol_bits
from histocodec.models.prior.graph import MEAN_BITS

SPACING = (
    2  # only every other z of a row and a column moves at a time, so that each is judged with the latents around it
)
DEAREST = 3  # channels of z that are searched: two thirds of the gain of all 32, in a tenth of the time
LEAST_SHARE = 0.003  # of all bits: a channel of z that costs less is not worth the time

HyperLatents = NDArray[np.int64]
Bits = NDArray[np.float64]


def search_hyper_latents(codec: HyperChunkCodec, latents: NDArray[np.signedinteger], quality: int) -> HyperLatents:
    """The cheapest z (Cz, n/4, n/4) that the search finds for the latents (C, n, n) of a chunk, which are not all 0."""
    z = codec.hyper_latents(latents, quality)
    z_bits, y_bits = _bits(codec, latents, quality, z)
    least = LEAST_SHARE * (z_bits.sum() + y_bits.sum())
    by_channel = z_bits.sum(axis=(1, 2))
    dearest = [channel for channel in np.argsort(-by_channel)[:DEAREST] if by_channel[channel] > least]
    expected = codec.weights.arrays["prior.hyper_mean"][quality] / 2**MEAN_BITS
    rows, columns = y_bits.shape
    for channel in dearest:
        for i in range(SPACING):
            for j in range(SPACING):
                spaced = channel, slice(i, rows, SPACING), slice(j, columns, SPACING)
                step = np.rint(expected[channel] - z[spaced]).clip(-1, 1).astype(np.int64)
                if not step.any():
                    continue
                trial = z.copy()
                trial[spaced] += step
                trial_z_bits, trial_y_bits = _bits(codec, latents, quality, trial)
                change = (trial_z_bits - z_bits).sum(axis=0) + sum_neighbours(trial_y_bits - y_bits)
                cheaper = change[spaced[1:]] < 0
                if not cheaper.any():
                    continue
                trial[spaced] = z[spaced] + np.where(cheaper, step, 0)
                trial_z_bits, trial_y_bits = _bits(codec, latents, quality, trial)
                if trial_z_bits.sum() + trial_y_bits.sum() < z_bits.sum() + y_bits.sum():
                    z, z_bits, y_bits = trial, trial_z_bits, trial_y_bits
    return z


def sum_neighbours(values: Bits) -> Bits:
    """The sum over each position and the eight next to it, (rows, columns); beyond the edge lies 0."""
    rows, columns = values.shape
    padded = np.pad(values, 1)
    return np.asarray(sum(padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)))


def _bits(
    codec: HyperChunkCodec, latents: NDArray[np.signedinteger], quality: int, z: HyperLatents
) -> tuple[Bits, Bits]:
    """The bits of each coded z (Cz, rows, columns), and of all latents at each position of z (rows, columns)."""
    tables = codec.weights.tables
    first, *steps = codec.segments(latents, quality, z=z)
    _, cell_rows, cell_columns = first.extent
    rows, columns = -(-cell_rows // 2), -(-cell_columns // 2)
    z_bits = symbol_bits(first.values - first.whole_mean, first.tables, tables).reshape(-1, rows, columns)
    y_bits = np.zeros((2 * rows, 2 * columns))
    for step in steps:
        bits = symbol_bits(step.values - step.whole_mean, step.tables, tables)
        y_bits[:cell_rows, :cell_columns] += bits.reshape(-1, cell_rows, cell_columns).sum(axis=0)
    return z_bits.astype(np.float64), y_bits.reshape(rows, 2, columns, 2).sum(axis=(1, 3))
