"""The pixels of a container's chunks, and of small regions read directly.

A pixel never depends on the region that it was read in. Where the synthesis is exact, any window gives the same
pixels. Where it computes in floating point, a chunk is always decoded from the same window, on one thread of a CPU or
in a batch of fixed size on a GPU.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING

import numpy as np

from histocodec.codec.native import NativeTransform, decodes_natively
from histocodec.formats.container.abstract_container import DecodableContainer
from histocodec.formats.container.states import BACKGROUND, CODED, LOSSLESS
from histocodec.formats.decode.cache import Cache, CachePart, alone
from histocodec.formats.decode.chunks import ChunkReader
from histocodec.geometry import ChunkKey, Region, ceil_div
from histocodec.models.weights import ModelWeights
from histocodec.slide import Pixels
from histocodec.threads import Workers

if TYPE_CHECKING:
    import torch

    from histocodec.codec.transform import Transform
    from histocodec.formats.decode.gpu import GpuRegions

FEW = 16  # chunks of a region that is looked at chunk by chunk
WORTH_A_CHUNK = 1.35  # times a chunk's window, read directly: then the whole chunk is decoded, for reads to come
DIRECT_CHUNKS = 1 << 14  # of which it is noted how much was read directly
SIDE_BY_SIDE = 2  # chunks decoded from one window where there are many: they share a margin, and calls
GPU_BATCH = 16  # windows a launch; filled up to this unless exact: in another batch a convolution may round differently


class PixelDecoder:
    """Decodes the chunks of one container to pixels, on one device, or, where that is None, on the CPU without torch,
    for a model that `decodes_natively`. Thread-safe.

    Latents and pixels are kept in `cache`, which others may share. `dtype` is the arithmetic of a synthesis in floating
    point, by default the device's fastest. Methods raise FormatError where a file that they need is missing or damaged.
    """

    def __init__(
        self,
        container: DecodableContainer,
        weights: ModelWeights,
        device: "torch.device | None",
        workers: Workers,
        *,
        cache: Cache,
        dtype: "torch.dtype | None" = None,
    ) -> None:
        self.container, self.weights, self.device, self.workers = container, weights, device, workers
        if device is not None:  # before the workers have to do with it, so that each uses one core
            import torch  # noqa: F401
        self.reader = ChunkReader(container, weights, workers, cache=cache)
        self._here = device is None  # whether the calling thread may compute: no torch, whose threads it would use
        # Otherwise on a worker, as the reader's codec.
        self.transform = (
            _transform(weights, None, dtype) if self._here else workers.run(lambda: _transform(weights, device, dtype))
        )
        self._read_directly: dict[ChunkKey, float] = {}  # latents of windows, by chunk
        self._cache: CachePart[ChunkKey, Pixels] = CachePart(cache)

    def close(self) -> None:
        """Forgets what was decoded. Reads that go on elsewhere are finished."""
        self.reader.close()
        self._cache.close()

    @cached_property
    def gpu_regions(self) -> "GpuRegions | None":
        """What decodes whole regions on a GPU, bit for bit; None where the device has no exact kernels."""
        if self.device is None or not self.transform.by_kernels:
            return None
        from histocodec.formats.decode.gpu import GpuRegions  # here, since it needs Triton

        return GpuRegions(self.reader, self.device)

    # Whole chunks.

    def chunks(
        self, keys: Iterable[ChunkKey], *, done: Callable[[ChunkKey, Pixels], None] | None = None
    ) -> Iterator[tuple[ChunkKey, Pixels]]:
        """The pixels of chunks, (h, w, 3) uint8, cut at the level's edge, in the order of the keys. They may be shared
        with the cache: do not write to them. `done` is called with each as soon as it is there, by the worker that
        decoded it."""
        if self.device is not None and self.device.type != "cpu":
            for key, pixels in self._in_batches(keys):
                if done is not None:
                    done(key, pixels)
                yield key, pixels
            return

        def decode(run: Sequence[ChunkKey]) -> list[tuple[ChunkKey, Pixels]]:
            decoded = self._decode_run(run)
            if done is not None:
                for key, pixels in decoded:
                    done(key, pixels)
            return decoded

        keys, enough = iter(keys), 2 * SIDE_BY_SIDE * self.workers.count
        first = list(islice(keys, max(enough, FEW)))
        only = self._here and self.workers.count == 1  # this thread is as good as the pool's
        if len(first) < max(enough, FEW):  # all of them: their bytes are read together, too
            areas = ((key.level, self.reader.area_of(key)) for key in first if self._to_decode(key))
            self.reader.decode_ahead(areas, here=only)
        many = self.transform.exact and len(first) >= enough
        runs = _runs(chain(first, keys), SIDE_BY_SIDE if many else 1)
        for run in map(decode, runs) if only or (self._here and len(first) == 1) else self.workers.map(decode, runs):
            yield from run

    def read(self, level: int, region: Region, pixels: Pixels) -> None:
        """Writes the pixels of a region within the level to `pixels` (h, w, 3), whichever way is the fastest here: from
        the cache, directly, or by whole chunks (`copy`)."""
        side = self.container.attributes.chunk_side
        rows, columns = (
            range(region.y // side, ceil_div(region.y_end, side)),
            range(region.x // side, ceil_div(region.x_end, side)),
        )
        if len(rows) * len(columns) > FEW:
            self.copy(level, region, pixels)
            return
        keys = [ChunkKey(level, row, column) for row in rows for column in columns]
        at_hand = [self._without_synthesis(key) for key in keys]
        missing = [key for key, chunk in zip(keys, at_hand, strict=True) if chunk is None]
        if not missing:
            for key, chunk in zip(keys, at_hand, strict=True):
                assert chunk is not None
                self._paste(key, chunk, region, pixels)
        elif self._prefers_direct(region, missing):
            pixels[...] = self.read_direct(level, region)
        else:
            self.copy(level, region, pixels)

    def _paste(self, key: ChunkKey, chunk: Pixels, region: Region, pixels: Pixels) -> None:
        """Writes what a chunk and a region share to the region's pixels."""
        side = self.container.attributes.chunk_side
        x, y = key.column * side, key.row * side
        left, top = max(x, region.x), max(y, region.y)
        right, bottom = min(x + side, region.x_end), min(y + side, region.y_end)
        pixels[top - region.y : bottom - region.y, left - region.x : right - region.x] = chunk[
            top - y : bottom - y, left - x : right - x
        ]

    def copy(self, level: int, region: Region, pixels: Pixels) -> None:
        """Writes the pixels of a region within the level to `pixels` (h, w, 3) uint8. Beside them and the cache, takes
        memory for a few chunks of each worker, however large the region is."""
        if self.reader.has_background(level, region):
            pixels[...] = self.reader.stats.background

        def put(key: ChunkKey, chunk: Pixels) -> None:
            self._paste(key, chunk, region, pixels)

        for _ in self.chunks(self.reader.stored_in(level, region), done=put):
            pass

    def _decode_run(self, keys: Sequence[ChunkKey]) -> list[tuple[ChunkKey, Pixels]]:
        """The pixels of chunks that lie side by side, on this thread."""
        available = [(key, pixels) for key in keys if (pixels := self._without_synthesis(key)) is not None]
        if available:
            return available if len(keys) == 1 else [chunk for key in keys for chunk in self._decode_run([key])]
        window, margin = self.reader.chunk_window(keys[0], len(keys))
        side, channels = self.container.attributes.chunk_side, self.reader.stats.channels
        decoded = self.transform.synthesise_side_by_side(window, margin, channels, side)
        return [(key, self._cut_and_cache(key, pixels)) for key, pixels in zip(keys, decoded, strict=True)]

    def _in_batches(self, keys: Iterable[ChunkKey]) -> Iterator[tuple[ChunkKey, Pixels]]:
        """`chunks` on a GPU: the workers prepare windows, and GPU_BATCH of one shape are decoded together."""
        group: list[ChunkKey] = []
        for key in keys:
            group.append(key)
            if len(group) == 4 * GPU_BATCH:
                yield from self._decode_group(group)
                group = []
        yield from self._decode_group(group)

    def _decode_group(self, keys: Sequence[ChunkKey]) -> Iterator[tuple[ChunkKey, Pixels]]:
        done = {key: pixels for key in keys if (pixels := self._without_synthesis(key)) is not None}
        missing = [key for key in dict.fromkeys(keys) if key not in done]
        windows = list(zip(missing, self.workers.map(self.reader.chunk_window, missing), strict=True))
        windows.sort(key=lambda item: (item[1][0].shape, str(item[1][1])))
        for _, same_shape in groupby(windows, key=lambda item: (item[1][0].shape, item[1][1])):
            alike = list(same_shape)
            for start in range(0, len(alike), GPU_BATCH):
                batch = alike[start : start + GPU_BATCH]
                padding = 0 if self.transform.exact else GPU_BATCH - len(batch)
                padded = [window for _, (window, _) in batch] + [batch[0][1][0]] * padding
                decoded = self.transform.synthesise(padded, batch[0][1][1], self.reader.stats.channels)
                for (key, _), pixels in zip(batch, decoded, strict=False):
                    done[key] = self._cut_and_cache(key, pixels)
        for key in keys:
            yield key, done[key]

    # Direct reads: a small region from a window of its own, without its chunks.

    def prefers_direct(self, level: int, region: Region) -> bool:
        """Whether a region within the level is best read directly: its window is small beside those of the chunks that
        are yet to be decoded, and of at least one of these, little was read directly so far. Reads go on where they
        were, so before windows add up to more than `WORTH_A_CHUNK`, the whole chunk is decoded, once. Where the
        synthesis is not exact, nothing is read directly."""
        keys = self.container.attributes.chunks_in(level, region)
        return self._prefers_direct(region, [key for key in keys if self._to_decode(key)])

    def _prefers_direct(self, region: Region, missing: Sequence[ChunkKey]) -> bool:
        if not missing or not self.transform.exact or region.area > self.container.attributes.chunk_side**2:
            return False
        whole, share = self._chunk_window_area, self.window_area(region) / len(missing)
        if 2 * share > whole:
            return False
        return any(self._read_directly.get(key, 0) + share <= WORTH_A_CHUNK * whole for key in missing)

    def crowded(self, regions: Sequence[Region], readers: Mapping[ChunkKey, Sequence[int]]) -> set[ChunkKey]:
        """Of chunks that several regions need, by their numbers, those that are decoded sooner as a whole: the regions'
        windows together would be larger than the chunk's."""
        counts = Counter(i for numbers in readers.values() for i in numbers)

        def read(numbers: Sequence[int]) -> float:
            return sum(self.window_area(regions[i]) / counts[i] for i in numbers)

        several = (item for item in readers.items() if len(item[1]) > 1)
        return {key for key, numbers in several if read(numbers) > WORTH_A_CHUNK * self._chunk_window_area}

    def window_area(self, region: Region) -> int:
        """The latents of the window that a region in pixels is read directly from."""
        area, halo = self.reader.latents_of(region), self.weights.config.synthesis_halo
        return (area.width + 2 * halo) * (area.height + 2 * halo)

    @cached_property
    def _chunk_window_area(self) -> int:
        return (self.reader.side + 2 * self.weights.config.synthesis_halo) ** 2

    def read_direct(self, level: int, region: Region) -> Pixels:
        """The pixels (h, w, 3) uint8 of a region within the level, where the synthesis is exact. All workers decode the
        latents where several chunks are needed; one thread, the calling one if it may, the pixels."""
        if self.workers.count > 1:
            self.reader.decode_ahead([(level, self.reader.latents_of(region))])
        if self._here:
            return self.read_direct_here(level, region)
        return self.workers.run(lambda: self.read_direct_here(level, region))

    def read_direct_here(self, level: int, region: Region) -> Pixels:
        """`read_direct` on this thread alone, which is to be a worker where torch computes."""
        area, stride = self.reader.latents_of(region), self.weights.config.stride
        window, margin = self.reader.window(level, area)
        decoded = self.transform.synthesise([window], margin, self.reader.stats.channels)[0]
        pixels = np.ascontiguousarray(decoded[region.within(Region(area.x * stride, area.y * stride, 0, 0))])
        keys = self.container.attributes.chunks_in(level, region)
        missing = []
        for key in keys:
            if (available := self._without_synthesis(key)) is not None:
                self._paste(key, available, region, pixels)
            else:
                missing.append(key)
        if len(self._read_directly) > DIRECT_CHUNKS:
            self._read_directly.clear()
        for key in missing:
            read = self._read_directly.get(key, 0) + self.window_area(region) / len(missing)
            self._read_directly[key] = read
        return pixels

    # Pixels that need no synthesis.

    def _to_decode(self, key: ChunkKey) -> bool:
        """Whether the pixels of a chunk are yet to be decoded from latents."""
        return self.reader.state(key) == CODED and self._cache.get(key) is None

    def _without_synthesis(self, key: ChunkKey) -> Pixels | None:
        """The pixels of a chunk that is background, cached or stored losslessly; None where it must be decoded."""
        state = self.reader.state(key)
        if state == BACKGROUND:
            self.reader.check_absent(key)
            region = self.container.attributes.chunk_region(key)
            return np.broadcast_to(np.array(self.reader.stats.background, np.uint8), (region.height, region.width, 3))
        cached = self._cache.get(key)
        if cached is None and state == LOSSLESS:
            return self._cut_and_cache(key, self.container.lossless(key))
        return cached

    def _cut_and_cache(self, key: ChunkKey, pixels: Pixels) -> Pixels:
        region = self.container.attributes.chunk_region(key)
        pixels = alone(np.ascontiguousarray(pixels[: region.height, : region.width]))
        self._cache.put(key, pixels, pixels.nbytes)
        self._read_directly.pop(key, None)
        return pixels


@lru_cache(maxsize=4)
def _transform(
    weights: ModelWeights, device: "torch.device | None", dtype: "torch.dtype | None"
) -> "Transform | NativeTransform":
    """Built once for all slides of a model: it takes as long as decoding several regions."""
    if device is None:
        assert decodes_natively(weights)
        return NativeTransform(weights)
    from histocodec.codec.transform import Transform

    return Transform(weights, device, dtype=dtype)


def _runs(keys: Iterable[ChunkKey], longest: int) -> Iterator[list[ChunkKey]]:
    """The keys in their order, up to `longest` at once where one follows the other in a row of chunks."""
    run: list[ChunkKey] = []
    for key in keys:
        if run and (len(run) == longest or key != replace(run[-1], column=run[-1].column + 1)):
            yield run
            run = []
        run.append(key)
    if run:
        yield run
