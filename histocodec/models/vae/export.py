"""From a trained autoencoder to a model file: steps, reconstruction points and tables fitted to its own latents.

A latent is rounded to multiples of a step. How large the step of a dimension is follows from how precisely training
needed it. The posterior's variance v balances the error's price against the divergence that a smaller variance costs,
so the price is proportional to (1 - v) / v, and the best step to its inverse square root. The common factor makes
quality 50 spend the model's nominal ratio on the training patches; below it, steps double every 25 qualities.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save as to_safetensors

from histocodec.entropy import TableSet, fit_tables
from histocodec.entropy.cost import symbol_bits
from histocodec.errors import UsageError
from histocodec.models.config import CHUNK_PIXELS, QUALITIES, VaeConfig
from histocodec.models.export import gaussian_table_set
from histocodec.models.prior.graph import MEAN_BITS, SCALE_BITS, SCALES, SMALLEST_SCALE
from histocodec.models.vae.network import VaeModel, folded_state
from histocodec.models.weights import FORMAT, ModelWeights, parse_model

MIDDLE = 50  # the quality of the nominal ratio
QUALITIES_PER_OCTAVE = 25
OVERHEAD = 1.01  # a container's size in sizes of its latents; see `histocodec.formats.encode.target`
CHUNK_BYTES = 34  # of a chunk's header, CRC, line in an index, and share of the maps
MOST_VARIANCE = 0.98  # of a posterior, so that a dimension that says nothing gets no infinite step
MOST_PATCHES = 4096  # of the fit
NEARBY = (-2, -1, 0, 1, 2)  # scale indices that are tried, relative to that of the standard deviation

Means = NDArray[np.float32]


@dataclass(frozen=True)
class _Coded:
    """The training patches at one set of steps: integers y (N, D), each dimension's mean in eighths and scale index,
    (D,) each, and the bits of a patch."""

    y: NDArray[np.int64]
    mean: NDArray[np.int64]
    index: NDArray[np.int64]
    bits: float

    def symbols(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The symbols, and the table of each with these scale indices (D,); both (N, D)."""
        table = (index << MEAN_BITS) + (self.mean & ((1 << MEAN_BITS) - 1))
        return self.y - (self.mean >> MEAN_BITS), np.broadcast_to(table, self.y.shape)

    def entries(self, tables: TableSet, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """The index of each symbol in `tables.freq`, with these scale indices (D,); (N, D)."""
        symbols, table = self.symbols(index)
        entry, size = symbols - tables.low[table], tables.size[table].astype(np.int64)
        return np.asarray(tables.offset[table] + np.where((entry < 0) | (entry >= size), size, entry))


def export_vae(
    model: VaeModel, model_id: str, batches: Iterable[torch.Tensor], *, notes: Mapping[str, str] | None = None
) -> ModelWeights:
    """The model file of a trained model, parsed and checked; `.data` holds its bytes.

    `batches` are normalised training patches (B, 3, S, S) that steps and tables are fitted to. `notes` become metadata
    beside the id. Raises UsageError where there are no patches.
    """
    config, base = model.config, gaussian_table_set()
    means, variance = _posteriors(model, batches)
    shape = np.sqrt(variance / (1 - np.minimum(variance, MOST_VARIANCE)))  # (D,)
    middle = _middle_step(means, shape, nominal_bits(config), base)
    counts = np.zeros(base.freq.shape, np.int64)
    rows: dict[str, list[NDArray[Any]]] = {name: [] for name in ("gain", "inverse_gain", "mean", "index")}
    for quality in range(QUALITIES):
        step = middle * shape * 2.0 ** ((MIDDLE - quality) / QUALITIES_PER_OCTAVE)
        coded = _coded(means, step, base)
        np.add.at(counts, coded.entries(base, coded.index).ravel(), 1)
        energy = np.square(coded.y).sum(axis=0)
        point = np.where(energy > 0, (means * coded.y).sum(axis=0) / np.maximum(energy, 1), step)
        for name, row in (("gain", 1 / step), ("inverse_gain", point), ("mean", coded.mean), ("index", coded.index)):
            rows[name].append(row)
    tables = fit_tables(base, counts)
    arrays: dict[str, NDArray[Any]] = {
        "gain": np.stack(rows["gain"]).astype(np.float32),
        "inverse_gain": np.stack(rows["inverse_gain"]).astype(np.float32),
        "prior.latent_mean": np.stack(rows["mean"]).astype(np.int16),
        "prior.latent_index": np.stack(rows["index"]).astype(np.uint8),
        "tables.low": tables.low,
        "tables.size": tables.size,
        "tables.freq": tables.freq,
    }
    for part in ("g_a", "g_s"):
        for name, tensor in folded_state(getattr(model, part)).items():
            arrays[f"{part}.{name}"] = tensor.detach().cpu().contiguous().numpy().astype(np.float16)
    metadata = {
        **(notes or {}), "format": FORMAT, "id": model_id, "family": config.family, "config": config.to_json(),
    }  # fmt: skip
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return parse_model(to_safetensors(arrays, metadata=metadata), name=model_id)


@torch.no_grad()
def _posteriors(model: VaeModel, batches: Iterable[torch.Tensor]) -> tuple[Means, NDArray[np.float64]]:
    """The means of the patches' posteriors (N, D), and the mean variance of each dimension (D,)."""
    model.eval()
    means, variances, count = [], [], 0
    for batch in batches:
        mean, log_variance = model.posterior(batch.contiguous(memory_format=torch.channels_last))
        means.append(mean.cpu().numpy())
        variances.append(log_variance.exp().cpu().numpy())
        count += len(batch)
        if count >= MOST_PATCHES:
            break
    if not means:
        raise UsageError("there is no patch to fit the model's steps to; at least one is needed")
    return np.concatenate(means), np.concatenate(variances).mean(axis=0, dtype=np.float64)


def nominal_bits(config: VaeConfig) -> float:
    """The bits of a patch's latents at the model's nominal ratio, without what a container adds."""
    pixels = config.stride**2
    return 24 * pixels / (config.ratio or 512) / OVERHEAD - 8 * CHUNK_BYTES * pixels / CHUNK_PIXELS**2


def _middle_step(means: Means, shape: NDArray[np.float64], bits: float, tables: TableSet) -> float:
    """The factor of `shape` with which a patch has so many bits, by bisection to a thousandth."""
    low, high = 1e-4, 1e4
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _coded(means, middle * shape, tables).bits > bits else (low, middle)
    return high


def _coded(means: Means, step: NDArray[np.float64], tables: TableSet) -> _Coded:
    limits = np.iinfo(np.int16)
    y = np.floor(means / step + 0.5).clip(limits.min, limits.max).astype(np.int64)
    mean = np.rint(y.mean(axis=0) * (1 << MEAN_BITS)).astype(np.int64)
    deviation = np.maximum(y.std(axis=0), SMALLEST_SCALE)
    near = np.rint(np.log2(deviation / SMALLEST_SCALE) * (1 << SCALE_BITS)).astype(np.int64)
    coded, best, index = _Coded(y, mean, near, 0.0), np.full(len(step), np.inf), near
    for offset in NEARBY:
        candidate = (near + offset).clip(0, SCALES - 1)
        symbols, table = coded.symbols(candidate)
        bits = symbol_bits(symbols.ravel(), table.ravel(), tables).reshape(y.shape).mean(axis=0, dtype=np.float64)
        index, best = np.where(bits < best, candidate, index), np.minimum(bits, best)
    return _Coded(y, mean, index, float(best.sum()))
