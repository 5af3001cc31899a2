"""The last step of training: frequency tables fitted to the symbols that are really coded.

Training assumes a Gaussian around each mean. The symbols of one table are a mixture over what the network could not
tell apart, with heavier tails. Counting them on the training images costs a decoder nothing.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from histocodec.entropy import TableSet, fit_tables
from histocodec.models.config import GROUPS, QUALITIES
from histocodec.models.export import gaussian_table_set
from histocodec.models.hyper import HyperModel
from histocodec.models.prior.graph import MEAN_BITS, SCALES
from histocodec.models.prior.training import step_mask
from histocodec.train.data.patches import Batch

REACH = 2048  # larger |symbols| count as this one; they escape in every table


@torch.no_grad()
def symbol_counts(model: HyperModel, batches: Iterable[Batch], *, seed: int = 0) -> NDArray[np.int64]:
    """How often each symbol is coded with each table, (tables, 2·REACH + 1), in batches of normalised patches at random
    qualities. Entry REACH of a row is the symbol 0. A function of model, batches and seed alone."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    counts = np.zeros((SCALES << MEAN_BITS, 2 * REACH + 1), np.int64)
    device = next(model.parameters()).device
    for batch in batches:
        quality = torch.randint(QUALITIES, (len(batch.pixels),), generator=generator).float().to(device)
        log_gain, _ = model.gains(quality)
        y = torch.floor(model.g_a(batch.pixels) * log_gain.exp()[:, :, None, None] + 0.5)
        graph, ops = model.prior.graph, model.prior.ops(quality, log_gain)
        z = graph.h_a(ops, y)
        mean, index = model.prior.hyper_parameters(quality)
        _count(counts, z, mean[:, :, None, None].expand_as(z), index[:, :, None, None].expand_as(z))
        h = graph.h_s(ops, z)
        for k in range(GROUPS):
            mean, index = graph.step(ops, k, y * step_mask(k, *y.shape[1:]).to(device), h)
            _count(counts, ops.cells(y, k), mean, index)
    return counts


def _count(counts: NDArray[np.int64], values: torch.Tensor, mean: torch.Tensor, index: torch.Tensor) -> None:
    y, m, i = (t.cpu().numpy().astype(np.int64).ravel() for t in (values, mean, index))
    table = (i << MEAN_BITS) + (m & ((1 << MEAN_BITS) - 1))
    symbol = np.clip(y - (m >> MEAN_BITS), -REACH, REACH) + REACH
    np.add.at(counts, (table, symbol), 1)


def refitted_tables(counts: NDArray[np.int64], base: TableSet | None = None) -> TableSet:
    """The tables of `base`, by default the Gaussian ones, refitted to the counts of `symbol_counts`."""
    base = base or gaussian_table_set()
    rows = []
    for t in range(len(base)):
        low, size = int(base.low[t]) + REACH, int(base.size[t])
        regular = counts[t, low : low + size]
        rows.append(np.append(regular, counts[t].sum() - regular.sum()))
    return fit_tables(base, np.concatenate(rows))
