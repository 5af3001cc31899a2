"""Latent chunks from their bytes on a GPU, many at once: the integers of `HyperChunkCodec.decode`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from histocodec.codec.chunk import HEADER_BYTES, ChunkHeader
from histocodec.codec.gpu import kernels
from histocodec.codec.gpu.layers import Layer, added_bytes, launch
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

QUADS = 64  # channels of a program, of each group


@dataclass(frozen=True)
class Tables:
    """A set of frequency tables as a GPU looks things up: little enough for its first cache."""

    offset: Tensor  # (T,) int32: a table's first entry
    coarse: Tensor  # (T, 256) uint16: from there on, the first entry that ends above so many 64 slots
    entry: Tensor  # its frequency (16 bits), the sum of what stands before it (16), its value (32)
    high: Tensor  # (T,) int32: the largest regular symbol
    low: Tensor

    @classmethod
    def of(cls, tables: TableSet, device: torch.device) -> "Tables":
        frequency, size = tables.freq.astype(np.int64), tables.size.astype(np.int64)
        table = np.repeat(np.arange(len(tables)), size + 1)
        value = np.arange(len(frequency)) - tables.offset[table] + tables.low[table]
        value[tables.offset + size] = kernels.ESCAPE.value
        entry = (frequency << 48) + (tables.cdf.astype(np.int64) << 32) + (value & 0xFFFFFFFF)
        low = tables.low.astype(np.int32)
        high = (low + size - 1).astype(np.int32)
        every = tables.offset.copy(), tables.coarse.copy(), entry, high, low
        return cls(*(torch.from_numpy(each).to(device) for each in every))


@dataclass(frozen=True)
class Latents:
    """Decoded chunks: y (B, n, n, 4, C/4) int16, the channel of [g, q] being 4q + g; quality (B,) int32; sound (B,)
    bool: where not, nothing of a chunk can be trusted, and `HyperChunkCodec` says what is wrong with it."""

    y: Tensor
    quality: Tensor
    sound: Tensor


class GpuChunkDecoder:
    """Decodes with one `hyper` model's prior on one device."""

    def __init__(self, weights: ModelWeights, device: torch.device) -> None:
        self.device, config, arrays = device, weights.hyper, weights.arrays
        self.config, self.quads = config, config.latent_channels // GROUPS
        self.tables = Tables.of(weights.tables, device)
        self.layers: dict[str, Layer] = {}
        self.heads: dict[tuple[int, int], Layer] = {}  # of a step and a group
        self.shift: dict[str, int] = {}
        self.predict: dict[int, tuple[Tensor, Tensor]] = {}
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
                bias = added_bytes(weight, bias)
            elif kind == "context":
                weight = weight[:, grouped]
            self.shift[layer.name] = layer.bits + layer.input_bits
            factor = np.full(layer.outputs, 2.0 ** (ACTIVATION_BITS - self.shift[layer.name]), np.float32)
            if kind == "heads":
                for group, own in enumerate(np.split(np.arange(layer.outputs), GROUPS)):
                    self.heads[int(layer.name[4]), group] = self._layer(weight[own], bias[0, own], factor[own])
            else:
                self.layers[layer.name] = self._layer(weight, bias if layer.by_quality else bias[0], factor)
        base = arrays["prior.base_index"][:, grouped]
        self.base = self._put(base, np.int32)
        self.compress = self._put(arrays["prior.compress"], np.uint8)
        self.hyper_mean = self._put(arrays["prior.hyper_mean"], np.int32)
        self.hyper_index = self._put(arrays["prior.hyper_index"], np.int32)

    def decode(self, chunks: Sequence[bytes], side: int) -> Latents:
        """Chunks of `side` × `side` latents, from the bytes that `HyperChunkCodec.encode` wrote."""
        stream = _Stream(self, chunks, side)
        z = stream.hyper_latents()
        batch, width = len(chunks), self.config.hyper_width
        seen = self.config.context_width
        mixed = torch.empty((batch, side, side, seen + width), dtype=torch.int8, device=self.device)
        mixed[..., seen:] = self._h_s(z, stream.quality)
        y = torch.zeros((batch, side, side, GROUPS, self.quads), dtype=torch.int16, device=self.device)
        small = torch.zeros(y.shape, dtype=torch.int8, device=self.device)
        sums = torch.empty((GROUPS, batch, side // 2, side // 2, 2 * self.quads), dtype=torch.int32, device=self.device)
        for k in range(GROUPS):
            if k:
                context = self.layers[f"step{k}.context"].activation(small.flatten(3))
                self.layers[f"step{k}.neighbours"].activation(context, out=mixed[..., :seen])
            mix = self.layers[f"step{k}.mix"]
            active = mix.activation(mixed if k else mixed[..., seen:], which=stream.quality)
            cells = active.view(batch, side // 2, 2, side // 2, 2, -1).permute(2, 4, 0, 1, 3, 5).contiguous()
            for p, place in enumerate(POSITIONS):
                self.heads[k, p ^ k].total(cells[place], sums[p])
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
        return Layer(weight, bias, factor, self.device, then=kernels.UP)

    def _put(self, values: NDArray[Any], dtype: Any) -> Tensor:
        return torch.from_numpy(np.array(values, dtype, order="C")).to(self.device)


class _Stream:
    """The streams of a batch of chunks while they are read."""

    def __init__(self, decoder: GpuChunkDecoder, chunks: Sequence[bytes], side: int) -> None:
        self.decoder, self.side, batch = decoder, side, len(chunks)
        # quality; extent (3); lanes; first byte, last byte; whether broken; states
        sent = np.zeros((8 + 2 * MAX_LANES, batch), np.int32)
        sent[6] = 1
        states = np.full((batch, MAX_LANES), LOWER, np.int64)
        start = 0
        for n, chunk in enumerate(chunks):
            try:
                header = ChunkHeader.unpack(chunk, (decoder.config.latent_channels, side, side))
                if not header.empty:
                    own = _first_states(chunk)
                    states[n, : len(own)] = own
                    first = start + HEADER_BYTES + 4 * len(own)
                    sent[1:7, n] = *header.extent, len(own), first, start + len(chunk) - 1
                sent[0, n] = header.quality
            except FormatError:
                sent[7, n] = 1
            start += len(chunk)
        sent[8:] = states.view(np.int32).T
        put = decoder._put
        self.data = put(np.frombuffer(b"".join(chunks), np.uint8), np.uint8)
        there = put(sent, np.int32)
        self.quality, self.extents, self.lanes, self.status = there[0], there[1:4].T.contiguous(), there[4], there[7]
        self.cursors = there[5:7].T.contiguous()
        self.states = there[8:].T.reshape(-1).view(torch.int64).view(batch, MAX_LANES)
        self.count = self.extents[:, 0] * self.extents[:, 1] * self.extents[:, 2] * GROUPS
        self.most = decoder.config.latent_channels // GROUPS * side * side  # elements of a step

    def hyper_latents(self) -> Tensor:
        """z (B, n/4, n/4, Cz) int8"""
        decoder, across, channels = self.decoder, self.side // 4, self.decoder.config.hyper_channels
        rows, columns = ((self.extents[:, i] + 1) // 2 for i in (1, 2))
        area = rows * columns
        every = torch.arange(channels * across * across, device=decoder.device, dtype=torch.int32)[None]
        own = (every // area.clamp(min=1)[:, None]).clamp(max=channels - 1).long()
        mean, index = (torch.gather(v[self.quality.long()], 1, own) for v in (decoder.hyper_mean, decoder.hyper_index))
        tables = ((index << MEAN_BITS) + (mean & PHASE_MASK)).to(torch.int16)
        found = self._read(tables, mean >> MEAN_BITS, channels * area, HYPER_CLIP + 1)
        self.status |= ((found == -HYPER_CLIP - 1) & (every < (channels * area)[:, None])).any(1).int()
        channel, row, column = every // across**2, every // across % across, every % across
        at = (channel * rows[:, None] + row) * columns[:, None] + column
        coded = (row < rows[:, None]) & (column < columns[:, None])
        z = torch.where(coded, torch.gather(found, 1, torch.where(coded, at, 0).long()), 0)
        shaped = z.to(torch.int8).view(-1, channels, across, across)
        return shaped.permute(0, 2, 3, 1).contiguous()

    def step(self, k: int, sums: Tensor, y: Tensor, small: Tensor) -> None:
        """The elements of step k into y and `small`, by what the prior has added up for them."""
        decoder, side, quads = self.decoder, self.side, self.decoder.quads
        batch, across = len(y), triton.next_power_of_2(side // 2)
        tables = torch.empty((batch, self.most), dtype=torch.int16, device=y.device)
        whole = torch.empty((batch, self.most), dtype=torch.int32, device=y.device)
        shift = decoder.shift[f"step{k}.heads"]
        weight, bias = decoder.predict[k] if k else (small, decoder.base)
        grid = batch * (side // 2), GROUPS, triton.cdiv(quads, QUADS)
        launch(
            kernels.distributions, grid, sums, decoder.base, self.quality, y, weight, bias, self.extents, tables, whole,
            shift - MEAN_BITS, shift - SCALE_BITS, side, quads, STEP=k, COLUMNS=across, QUADS=QUADS,
        )  # fmt: skip
        found = self._read(tables, whole, self.count, LATENT_LIMIT)
        launch(
            kernels.placed, grid, found, self.extents, decoder.compress, y, small, side, quads,
            STEP=k, COLUMNS=across, QUADS=QUADS,
        )  # fmt: skip

    def sound(self) -> Tensor:
        """Whether each stream ends where its symbols do, with every lane back at its start, (B,) bool"""
        ended = (self.cursors[:, 0] == self.cursors[:, 1]) | (self.lanes == 0)
        return (self.status == 0) & ended & (self.states == LOWER).all(1)

    def _read(self, tables: Tensor, whole: Tensor, count: Tensor, limit: int) -> Tensor:
        """The next segment: `count` (B,) integers in coding order, (B, N) int32, by tables and whole means (B, N)."""
        of, most, lengths = self.decoder.tables, tables.shape[1], count.to(torch.int32)
        found, grid = torch.empty(tables.shape, dtype=torch.int32, device=tables.device), (len(tables),)
        launch(
            kernels.symbols, grid, self.data, lengths, self.lanes, self.states, self.cursors, self.status, tables,
            whole, of.offset, of.coarse, of.entry, found, most, LIMIT=limit, WARP=found.is_cuda, num_warps=1,
        )  # fmt: skip
        launch(
            kernels.escapes, grid, self.data, lengths, self.cursors, self.status, tables, whole, of.high, of.low, found,
            most, LIMIT=limit, WIDTH=1024,
        )  # fmt: skip
        return found


def _first_states(chunk: bytes) -> NDArray[np.uint32]:
    """The lanes' states at the beginning of a chunk's stream. Raises FormatError where it cannot have any."""
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
