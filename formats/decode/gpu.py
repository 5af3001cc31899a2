"""Regions of a container decoded on a GPU: compressed bytes are uploaded, and pixels are made there, bit for bit those
that a CPU decodes.

    ChunkReader.read ──▶ GpuChunkDecoder ──▶ canvas of latents ──▶ IntegerSynthesis ──▶ pixels
     chunks' bytes         a strip's y         gains undone        a band at a time

A *strip* is as many whole rows of chunks as the GPU's memory takes, a *band* the part of it whose pixels are made at
once.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from histocodec.codec.gpu import network_kernels
from histocodec.codec.gpu.chunk import GpuChunkDecoder, Latents
from histocodec.codec.gpu.layers import launch
from histocodec.codec.gpu.synthesis import TritonEngine, denormalise
from histocodec.formats.container.check import check_weights
from histocodec.formats.container.states import BACKGROUND, CODED
from histocodec.formats.decode.chunks import ChunkReader
from histocodec.geometry import ChunkKey, Region, ceil_div
from histocodec.models.transforms.exact import IntegerSynthesis
from histocodec.models.weights import ModelWeights
from histocodec.slide import Pixels

MAX_STRIP = 1024  # chunks of a strip at most: a warp decodes each, and a GPU runs thousands of warps
MAX_BAND = 256  # chunks of a band at most
CHUNK_BYTES = 16 << 20  # GPU memory that a chunk of a strip takes at most
CHECKED_AT_ONCE = 64  # chunks whose products are in memory together: 4 bytes for each latent
POSITIONS, CHANNELS = 32, 64  # of a program


class GpuRegions:
    """Decodes regions of one container on a GPU, for a model with an exact synthesis. The GPU needs exact kernels
    (`kernels_exact`). Methods raise FormatError where a file is missing or damaged."""

    def __init__(self, reader: ChunkReader, device: torch.device) -> None:
        self.reader, self.device, self.config = reader, device, reader.weights.hyper
        self.decoder, self.synthesis = _networks(reader.weights, device)
        self.gains = torch.from_numpy(np.array(reader.weights.arrays["inverse_gain"])).to(device)
        self.background_latent = torch.from_numpy(np.array(reader.stats.background_latent, np.float32)).to(device)
        self.background = torch.from_numpy(np.array(reader.stats.background, np.uint8)).to(device)
        self.strip_chunks = MAX_STRIP
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            self.strip_chunks = min(MAX_STRIP, max(1, free // 2 // CHUNK_BYTES))

    def region(self, level: int, region: Region) -> Tensor:
        """The pixels (h, w, 3) uint8, on the GPU, of a region within the level."""
        out = torch.empty((region.height, region.width, 3), dtype=torch.uint8, device=self.device)
        if not region.empty:
            for strip in self._strips(region, self.strip_chunks):
                self._decode(level, strip, out[strip.within(region)])
        return out

    def copy(self, level: int, region: Region, pixels: Pixels) -> None:
        """Writes the pixels of a region within the level to `pixels` (h, w, 3) uint8 in host memory, strip by strip, so
        that a region may be larger than the GPU's memory."""
        host = torch.from_numpy(pixels)
        for strip in self._strips(region, self.strip_chunks):
            host[strip.within(region)].copy_(self.region(level, strip))

    def _strips(self, region: Region, chunks: int) -> Iterator[Region]:
        """A region cut into strips of at most `chunks` chunks: of whole rows, or of a part of one row."""
        side = self.reader.container.attributes.chunk_side
        across = min(chunks, ceil_div(region.x_end, side) - region.x // side)
        width, height = across * side, chunks // across * side
        for top in range(region.y // side * side, region.y_end, height):
            for left in range(region.x // side * side, region.x_end, width):
                yield Region(left, top, width, height).intersect(region)

    @torch.inference_mode()
    def _decode(self, level: int, strip: Region, out: Tensor) -> None:
        """Writes the pixels of one strip to `out` (h, w, 3)."""
        reader, attributes = self.reader, self.reader.container.attributes
        window, _ = reader.window_of(level, reader.latents_of(strip))
        keys = reader.chunks_in(level, window)
        stored = [key for key in keys if reader.state(key) != BACKGROUND]
        numbers = np.full((keys[-1].row - keys[0].row + 1, keys[-1].column - keys[0].column + 1), -1, np.int32)
        for n, key in enumerate(stored):
            numbers[key.row - keys[0].row, key.column - keys[0].column] = n
        if stored:
            latents = self.decoder.decode(reader.read(stored), reader.side)
            slots = torch.from_numpy(numbers).to(out.device)
            self._synthesise(level, strip, window, latents, slots, out)
            if self._repair(level, stored, latents):
                self._synthesise(level, strip, window, latents, slots, out)
        for key in attributes.chunks_in(level, strip):
            if reader.state(key) == CODED:
                continue
            chunk_region = attributes.chunk_region(key)
            part = chunk_region.intersect(strip)
            if reader.state(key) == BACKGROUND:
                reader.check_absent(key)
                out[part.within(strip)] = self.background
            else:
                lossless = reader.container.lossless(key)
                out[part.within(strip)] = torch.from_numpy(lossless[part.within(chunk_region)]).to(out.device)

    def _synthesise(
        self, level: int, strip: Region, strip_window: Region, latents: Latents, slots: Tensor, out: Tensor
    ) -> None:
        """Writes the pixels of a strip to `out` (h, w, 3). `slots` (rows, columns) int32 has, for each chunk that the
        strip's window touches, its number in `latents`, or -1 where it is background."""
        reader, stride, side = self.reader, self.config.stride, self.reader.side
        gains = self.gains[latents.quality.long()]
        for band in self._strips(strip, min(MAX_BAND, self.strip_chunks)):
            area = reader.latents_of(band)
            window, margin = reader.window_of(level, area)
            first = window.y - strip_window.y // side * side, window.x - strip_window.x // side * side
            planes = self.synthesis.window(self._canvas(latents.y, slots, gains, first, window), margin)
            decoded = denormalise(planes, reader.stats.channels)[0]
            out[band.within(strip)] = decoded[band.within(Region(area.x * stride, area.y * stride, 0, 0))]

    def _canvas(self, y: Tensor, slots: Tensor, gains: Tensor, first: tuple[int, int], window: Region) -> Tensor:
        """The latents (1, C, h, w) float32 of a window, gains undone. `first` is its first row and column, counted from
        the first latent of the chunks in `slots`."""
        channels, count = self.config.latent_channels, window.area
        out = torch.empty((1, window.height, window.width, channels), dtype=torch.float32, device=y.device)
        grid = triton.cdiv(count, POSITIONS), triton.cdiv(channels, CHANNELS)
        launch(
            network_kernels.canvas, grid, y, slots, gains, self.background_latent, out, *first, window.width, count,
            self.reader.side, slots.shape[1], channels // 4, POSITIONS=POSITIONS, CHANNELS=CHANNELS,
        )  # fmt: skip
        return out.permute(0, 3, 1, 2)

    def _repair(self, level: int, keys: list[ChunkKey], latents: Latents) -> bool:
        """Has the CPU decode the chunks that the GPU could not, and returns whether there were any. Where a chunk is
        damaged, the CPU's decoder says how."""
        side, limits = self.reader.side, np.iinfo(self.reader.container.attributes.levels[level].dtype)
        low, high = latents.y.flatten(1).aminmax(dim=1)
        sound = (latents.sound & (low >= limits.min) & (high <= limits.max)).cpu().numpy()
        expected = self.reader.checks(keys)
        if expected is not None:
            sound &= self._checks(latents) == expected
        for n in np.flatnonzero(~sound):
            grouped = self.reader.decode(keys[n]).y.reshape(-1, 4, side, side).transpose(2, 3, 1, 0)
            latents.y[n] = torch.from_numpy(np.array(grouped, np.int16)).to(latents.y.device)
        return not sound.all()

    def _checks(self, latents: Latents) -> NDArray[np.uint32]:
        """`latents_check` of every chunk, (n,) uint32. Products wrap at 32 bits, as they must."""
        side, y = self.reader.side, latents.y
        weights = check_weights(y[0].numel()).astype(np.int32)  # the same bits
        grouped = weights[1:].reshape(-1, 4, side, side).transpose(2, 3, 1, 0)
        of_latents = torch.from_numpy(np.ascontiguousarray(grouped)).to(y.device)
        sums = [(part.int() * of_latents).flatten(1).sum(dim=1) for part in torch.split(y, CHECKED_AT_ONCE)]
        totals = torch.cat(sums) + latents.quality.long() * int(weights[0])
        return (totals & 0xFFFFFFFF).cpu().numpy().astype(np.uint32)


@lru_cache(maxsize=4)
def _networks(weights: ModelWeights, device: torch.device) -> tuple[GpuChunkDecoder, IntegerSynthesis]:
    """Built once for all slides of a model."""
    engine = TritonEngine(weights.hyper, weights.arrays, device)
    return GpuChunkDecoder(weights, device), IntegerSynthesis(weights.hyper, engine)
