"""Latent chunks decoded on a GPU, many at once: from their bytes to the integers of `HyperChunkCodec.decode`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from histocodec.codec.chunk import HEADER_BYTES, ChunkHeader
from histocodec.codec.gpu import entropy_kernels, network_kernels
from histocodec.codec.gpu.layers import Layer, launch, offset_bias
from histocodec.entropy.rans import LOWER, MAX_LANES
from histocodec.entropy.tables import TableSet
from histocodec.errors import FormatError
from histocodec.models.config import GROUPS
from histocodec.models.prior.graph import (
    ACTIVATION_BITS,
    HYPER_CLIP,
    LATENT_LIMIT,
    MEAN_BITS,
    PHASE_MASK,
    POSITIONS,
    SCALE_BITS,
    layers,
)
from histocodec.models.weights import ModelWeights

QUADS = 64  # of one program


@dataclass(frozen=True)
class Tables:
    """T frequency tables with E entries in all, laid out for a GPU's look-ups, and small enough for its first cache."""

    offset: Tensor  # (T,) int32: a table's first entry
    coarse: Tensor  # (T, 256) uint16: for every 64 slots, the first entry that ends above them, counted from `offset`
    entry: Tensor  # (E,) int64: frequency (16 bits), sum of the frequencies before it (16), value (32)
    high: Tensor  # (T,) int32: the largest regular symbol
    low: Tensor  # (T,) int32: the smallest

    @classmethod
    def of(cls, tables: TableSet, device: torch.device) -> "Tables":
        """The tables of a model on a device."""
        frequency, size = tables.freq.astype(np.int64), tables.size.astype(np.int64)
        table = np.repeat(np.arange(len(tables)), size + 1)
        value = np.arange(len(frequency)) - tables.offset[table] + tables.low[table]
        value[tables.offset + size] = entropy_kernels.ESCAPE.value
        entry = (frequency << 48) + (tables.cdf.astype(np.int64) << 32) + (value & 0xFFFFFFFF)
        low = tables.low.astype(np.int32)
        high = (low + size - 1).astype(np.int32)
        arrays = tables.offset.copy(), tables.coarse.copy(), entry, high, low
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))


@dataclass(frozen=True)
class Latents:
    """The latents of B decoded chunks."""

    y: Tensor  # (B, n, n, 4, C/4) int16; [..., g, q] is channel 4q + g
    quality: Tensor  # (B,) int32
    sound: Tensor  # (B,) bool: if False, the chunk cannot be trusted, and `HyperChunkCodec` says what is wrong with it


class GpuChunkDecoder:
    """Decodes chunks with the prior of one `hyper` model on one device. Raises UsageError for another family."""

    def __init__(self, weights: ModelWeights, device: torch.device) -> None:
        self.device, config, arrays = device, weights.hyper, weights.arrays
        self.config, self.quads = config, config.latent_channels // GROUPS
        self.tables = Tables.of(weights.tables, device)
        self.layers: dict[str, Layer] = {}
        self.heads: dict[tuple[int, int], Layer] = {}  # by step and group
        self.shift: dict[str, int] = {}
        self.predict: dict[int, tuple[Tensor, Tensor]] = {}  # by step: weight, bias
        grouped = np.arange(config.latent_channels).reshape(self.quads, GROUPS).T.ravel()
        for layer in layers(config):
            weight, bias = arrays[f"prior.{layer.name}.weight"], arrays[f"prior.{layer.name}.bias"].astype(np.int32)
            kind = layer.name.rpartition(".")[2]
            if layer.name.startswith("h_a"):
                continue
            if kind == "predict":
                taps = weight.reshape(-1, 9).T[:, grouped]
                self.predict[int(layer.name[4])] = self._put(taps, np.int8), self._put(bias[0, grouped], np.int32)
                continue
            if layer.input_peak == 255:
                bias = offset_bias(weight, bias)
            elif kind == "context":
                weight = weight[:, grouped]
            self.shift[layer.name] = layer.bits + layer.input_bits
            factor = np.full(layer.outputs, 2.0 ** (ACTIVATION_BITS - self.shift[layer.name]), np.float32)
            if kind == "heads":
                for group, rows in enumerate(np.split(np.arange(layer.outputs), GROUPS)):
                    self.heads[int(layer.name[4]), group] = self._layer(weight[rows], bias[0, rows], factor[rows])
            else:
                self.layers[layer.name] = self._layer(weight, bias if layer.by_quality else bias[0], factor)
        base = arrays["prior.base_index"][:, grouped]
        self.base = self._put(base, np.int32)
        self.compress = self._put(arrays["prior.compress"], np.uint8)
        self.hyper_mean = self._put(arrays["prior.hyper_mean"], np.int32)
        self.hyper_index = self._put(arrays["prior.hyper_index"], np.int32)

    def decode(self, chunks: Sequence[bytes], side: int) -> Latents:
        """Decode chunks of `side` × `side` latents from the bytes that `HyperChunkCodec.encode` wrote. A broken chunk
        raises nothing; see `Latents.sound`."""
        stream = _Stream(self, chunks, side)
        z = stream.hyper_latents()
        batch, width = len(chunks), self.config.hyper_width
        context_width = self.config.context_width
        mixed = torch.empty((batch, side, side, context_width + width), dtype=torch.int8, device=self.device)
        mixed[..., context_width:] = self._h_s(z, stream.quality)
        y = torch.zeros((batch, side, side, GROUPS, self.quads), dtype=torch.int16, device=self.device)
        small = torch.zeros(y.shape, dtype=torch.int8, device=self.device)
        sums = torch.empty((GROUPS, batch, side // 2, side // 2, 2 * self.quads), dtype=torch.int32, device=self.device)
        for k in range(GROUPS):
            if k:
                context = self.layers[f"step{k}.context"].activation(small.flatten(3))
                self.layers[f"step{k}.neighbours"].activation(context, out=mixed[..., :context_width])
            mix = self.layers[f"step{k}.mix"]
            active = mix.activation(mixed if k else mixed[..., context_width:], which=stream.quality)
            cells = active.view(batch, side // 2, 2, side // 2, 2, -1).permute(2, 4, 0, 1, 3, 5).contiguous()
            for p, position in enumerate(POSITIONS):
                self.heads[k, p ^ k].total(cells[position], sums[p])
            stream.step(k, sums, y, small)
        return Latents(y, stream.quality, stream.sound())

    def _h_s(self, z: Tensor, quality: Tensor) -> Tensor:
        """z (B, n/4, n/4, Cz) int8 → (B, n, n, hyper_width) int8"""
        a = self.layers["h_s.0"].activation(z, which=quality)
        a = self.layers["h_s.1"].activation(a)
        a = _unfolded(self.layers["h_s.2"].activation(a))
        a = self.layers["h_s.3"].activation(a)
        return _unfolded(self.layers["h_s.4"].activation(a))

    def _layer(self, weight: NDArray[Any], bias: NDArray[Any], factor: NDArray[Any]) -> Layer:
        return Layer(weight, bias, factor, self.device, then=network_kernels.UP)

    def _put(self, values: NDArray[Any], dtype: Any) -> Tensor:
        return torch.from_numpy(np.array(values, dtype, order="C")).to(self.device)


class _Stream:
    """The rANS streams of a batch of chunks, and how far they have been read."""

    def __init__(self, decoder: GpuChunkDecoder, chunks: Sequence[bytes], side: int) -> None:
        self.decoder, self.side, batch = decoder, side, len(chunks)
        # One upload: quality; extent (3); lanes; first byte, last byte; whether broken; states.
        upload = np.zeros((8 + 2 * MAX_LANES, batch), np.int32)
        upload[6] = 1
        states = np.full((batch, MAX_LANES), LOWER, np.int64)
        start = 0
        for n, chunk in enumerate(chunks):
            try:
                header = ChunkHeader.unpack(chunk, (decoder.config.latent_channels, side, side))
                if not header.empty:
                    first_states = _first_states(chunk)
                    states[n, : len(first_states)] = first_states
                    first = start + HEADER_BYTES + 4 * len(first_states)
                    upload[1:7, n] = *header.extent, len(first_states), first, start + len(chunk) - 1
                upload[0, n] = header.quality
            except FormatError:
                upload[7, n] = 1
            start += len(chunk)
        upload[8:] = states.view(np.int32).T
        put = decoder._put
        self.data = put(np.frombuffer(b"".join(chunks), np.uint8), np.uint8)
        facts = put(upload, np.int32)
        self.quality, self.extents, self.lanes, self.status = facts[0], facts[1:4].T.contiguous(), facts[4], facts[7]
        self.cursors = facts[5:7].T.contiguous()
        self.states = facts[8:].T.reshape(-1).view(torch.int64).view(batch, MAX_LANES)
        self.count = self.extents[:, 0] * self.extents[:, 1] * self.extents[:, 2] * GROUPS
        self.most = decoder.config.latent_channels // GROUPS * side * side  # elements of a step

    def hyper_latents(self) -> Tensor:
        """Read z, (B, n/4, n/4, Cz) int8."""
        decoder, across, channels = self.decoder, self.side // 4, self.decoder.config.hyper_channels
        rows, columns = ((self.extents[:, i] + 1) // 2 for i in (1, 2))
        area = rows * columns
        number = torch.arange(channels * across * across, device=decoder.device, dtype=torch.int32)[None]
        coded_channel = (number // area.clamp(min=1)[:, None]).clamp(max=channels - 1).long()
        mean, index = (
            torch.gather(v[self.quality.long()], 1, coded_channel) for v in (decoder.hyper_mean, decoder.hyper_index)
        )
        tables = ((index << MEAN_BITS) + (mean & PHASE_MASK)).to(torch.int16)
        values = self._read(tables, mean >> MEAN_BITS, channels * area, HYPER_CLIP + 1)
        self.status |= ((values == -HYPER_CLIP - 1) & (number < (channels * area)[:, None])).any(1).int()
        channel, row, column = number // across**2, number // across % across, number % across
        order = (channel * rows[:, None] + row) * columns[:, None] + column
        coded = (row < rows[:, None]) & (column < columns[:, None])
        z = torch.where(coded, torch.gather(values, 1, torch.where(coded, order, 0).long()), 0)
        shaped = z.to(torch.int8).view(-1, channels, across, across)
        return shaped.permute(0, 2, 3, 1).contiguous()

    def step(self, k: int, sums: Tensor, y: Tensor, small: Tensor) -> None:
        """Read the elements of step k into y (B, n, n, 4, C/4) int16 and, compressed, into `small` int8. `sums` (4, B,
        n/2, n/2, 2·C/4) int32 are those of the prior's heads."""
        decoder, side, quads = self.decoder, self.side, self.decoder.quads
        batch, across = len(y), triton.next_power_of_2(side // 2)
        tables = torch.empty((batch, self.most), dtype=torch.int16, device=y.device)
        whole = torch.empty((batch, self.most), dtype=torch.int32, device=y.device)
        shift = decoder.shift[f"step{k}.heads"]
        weight, bias = decoder.predict[k] if k else (small, decoder.base)
        grid = batch * (side // 2), GROUPS, triton.cdiv(quads, QUADS)
        launch(
            entropy_kernels.distributions, grid, sums, decoder.base, self.quality, y, weight, bias, self.extents,
            tables, whole, shift - MEAN_BITS, shift - SCALE_BITS, side, quads, STEP=k, COLUMNS=across, QUADS=QUADS,
        )  # fmt: skip
        values = self._read(tables, whole, self.count, LATENT_LIMIT)
        launch(
            entropy_kernels.placed, grid, values, self.extents, decoder.compress, y, small, side, quads,
            STEP=k, COLUMNS=across, QUADS=QUADS,
        )  # fmt: skip

    def sound(self) -> Tensor:
        """Whether each stream ends where its symbols do, with every lane back at its start, (B,) bool."""
        ended = (self.cursors[:, 0] == self.cursors[:, 1]) | (self.lanes == 0)
        return (self.status == 0) & ended & (self.states == LOWER).all(1)

    def _read(self, tables: Tensor, whole: Tensor, count: Tensor, limit: int) -> Tensor:
        """Read the next segment: `count` (B,) integers in coding order, (B, N) int32, with their tables and whole means
        (B, N). An integer outside -`limit` … `limit` - 1 makes its chunk unsound."""
        table_set, most, lengths = self.decoder.tables, tables.shape[1], count.to(torch.int32)
        values, grid = torch.empty(tables.shape, dtype=torch.int32, device=tables.device), (len(tables),)
        launch(
            entropy_kernels.symbols, grid, self.data, lengths, self.lanes, self.states, self.cursors, self.status,
            tables, whole, table_set.offset, table_set.coarse, table_set.entry, values, most,
            LIMIT=limit, WARP=values.is_cuda, num_warps=1,
        )  # fmt: skip
        launch(
            entropy_kernels.escapes, grid, self.data, lengths, self.cursors, self.status, tables, whole,
            table_set.high, table_set.low, values, most, LIMIT=limit, WIDTH=1024,
        )  # fmt: skip
        return values


def _first_states(chunk: bytes) -> NDArray[np.uint32]:
    """The states of the lanes at the beginning of a chunk's stream. Raises FormatError where it cannot have any."""
    lanes = 1 << chunk[-1] if len(chunk) > HEADER_BYTES and chunk[-1] < MAX_LANES.bit_length() else 0
    if not lanes or len(chunk) <= HEADER_BYTES + 4 * lanes:
        raise FormatError("no lanes")
    states = np.frombuffer(chunk, "<u4", lanes, HEADER_BYTES)
    if (states < LOWER).any():
        raise FormatError("no states")
    return states


def _unfolded(a: Tensor) -> Tensor:
    """(B, h, w, 4c) → (B, 2h, 2w, c), as `Ops.unfold`"""
    batch, rows, columns, channels = a.shape
    split = a.view(batch, rows, columns, channels // 4, 2, 2).permute(0, 1, 4, 2, 5, 3)
    return split.reshape(batch, 2 * rows, 2 * columns, channels // 4)
