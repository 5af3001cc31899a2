"""A compressed slide: a `Slide` like any other, OpenSlide's interface (`OpenSlideFace`), and reads of its own."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np
import openslide
from PIL import Image

from histocodec.errors import UsageError
from histocodec.forks import Lock
from histocodec.formats.container.read import open_container
from histocodec.formats.container.store import Location
from histocodec.formats.decode.model import model_of
from histocodec.formats.decode.openslide_errors import openslide_errors
from histocodec.formats.decode.openslide_face import OpenSlideFace, openslide_properties
from histocodec.formats.decode.resample import STRIP_PIXELS, resampled
from histocodec.formats.decode.settings import cache_for, cache_of, check_settings, workers_of
from histocodec.formats.decode.spelling import asked, level_and_size
from histocodec.geometry import ChunkKey, Level, Region
from histocodec.slide import WHITE, Colour, LazyImages, Mpp, Pixels
from histocodec.threads import SHARED_WORKERS

if TYPE_CHECKING:
    import torch
    import zarr

    from histocodec.formats.decode.chunks import ChunkReader
    from histocodec.formats.decode.pixels import PixelDecoder

GPU_PIXELS = 4 << 20  # the least that a GPU decodes as a region from bytes; with less, most of it would be idle
MAX_SIDE = 1 << 24  # pixels of a side of what `read_array` resamples: a row of them has 50 MB
BATCH_REGIONS = 1024  # that read_batch reads together
BATCH_CHUNKS = 64  # of a region that is read together with others; a larger one is read by itself


def open_compressed(
    path: Location,
    *,
    device: str = "auto",
    cache_bytes: int | None = None,
    workers: int | None = None,
) -> "CompressedSlide":
    """Opens a container for reading: at a path or URL, or in a Zarr store.

    Pixels are decoded on `device` ("auto", "cpu", "cuda", "cuda:1"). All slides of a process share its threads and its
    cache, which `configure` sets; with `workers` the slide has as many threads of its own, and with `cache_bytes` a
    cache of its own for what was decoded. Raises UsageError where the path does not exist or a number is too low,
    UnsupportedError where it is no container or one of a later version, FormatError where it is damaged, and
    MissingModelError. The first read raises UsageError or UnsupportedError for a device that is not there.
    """
    return CompressedSlide(path, device=device, cache_bytes=cache_bytes, workers=workers)


class CompressedSlide(OpenSlideFace):
    """A container, opened; see `open_compressed`. Thread-safe, picklable, and usable in the workers of a PyTorch
    DataLoader.

    Metadata and latents need no PyTorch, nor do pixels that a CPU decodes, of models with an integer synthesis; for
    others it is loaded with the first pixel. Reads raise UsageError for a level that does
    not exist, a negative size or a closed slide, and FormatError where a file that they need is missing or damaged.
    """

    def __init__(
        self,
        path: Location,
        *,
        device: str = "auto",
        cache_bytes: int | None = None,
        workers: int | None = None,
    ) -> None:
        super().__init__()
        check_settings(workers, cache_bytes)
        with openslide_errors(opening=True):
            self.container = open_container(path)
            self.weights = model_of(self.container)
        attributes, store = self.container.attributes, self.container.store
        self.name = store.name
        self._filename = self.name  # where programs look that were written for `openslide.OpenSlide`
        self._arguments = (
            path if store.path is None else os.path.abspath(store.path),
            device,
            cache_bytes,
            workers,
        )
        self.device = device
        self.levels = tuple(Level(level.width, level.height, level.downsample) for level in attributes.levels)
        self.mpp: Mpp | None = attributes.mpp
        self.objective_power = attributes.objective_power
        self.background: Colour | None = attributes.background.colour
        self._properties = openslide_properties(attributes)
        self._workers = workers_of(workers)
        self._cache = cache_of(cache_bytes)
        self._decoder: PixelDecoder | None = None
        self._reader: ChunkReader | None = None  # of latents alone, where no pixels were read
        self.closed = False
        self._lock = Lock()  # of the decoder

    # The interface of a `Slide`. OpenSlide's is in the base class.

    @property
    def properties(self) -> Mapping[str, str]:
        """The source's properties, word for word, and OpenSlide's own, which speak of the container."""
        return self._properties

    @cached_property
    def icc_profile(self) -> bytes | None:
        """The ICC profile of the source, or None where it has none. It is read when it is first asked for."""
        return self.container.icc_profile()

    @property
    def associated(self) -> Mapping[str, Pixels]:
        """Label, macro and thumbnail, where the container has them, (H, W, 3) uint8; decoded at each look-up."""
        names = self.container.attributes.associated
        return LazyImages({name: partial(self._associated, name) for name in names})

    def _associated(self, name: str) -> Pixels:
        self._check_open()
        return self.container.associated(name)

    def read(self, region: Region, level: int) -> Pixels:
        """The pixels (h, w, 3) uint8 of a region in the level's own pixels; the background colour beyond its edge.

        Memory: the result, the cache, and a few chunks of each worker, however many chunks the region has.
        """
        inside = region.intersect(self.levels[self._checked_level(level)].region)
        pixels = np.empty((region.height, region.width, 3), np.uint8)
        if inside != region:
            pixels[...] = self.background or WHITE
        decoder = self.decoder
        if (gpu_regions := decoder.gpu_regions) is not None and inside.area >= GPU_PIXELS:
            gpu_regions.copy(level, inside, pixels[inside.within(region)])
        elif not inside.empty:
            decoder.read(level, inside, pixels[inside.within(region)])
        return pixels

    def close(self) -> None:
        """Forgets what was decoded, and ends the slide's threads where it has its own. A read after it raises
        UsageError; metadata stay. Other slides are not disturbed, and reads of other threads end as if before it."""
        self._forget(closed=True)
        if self._workers is not SHARED_WORKERS:
            self._workers.close()

    def set_cache(self, cache: openslide.OpenSlideCache) -> None:
        """See `OpenSlideFace.set_cache`."""
        chosen = cache_for(cache)
        self._check_open()
        self._cache = chosen
        self._forget()

    def _forget(self, *, closed: bool = False) -> None:
        with self._lock:
            self.closed = closed
            decoder, self._decoder = self._decoder, None
            reader, self._reader = self._reader, None
        for used in (decoder, reader):
            if used is not None:
                used.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> Literal[False]:
        self.close()
        return False

    # Reads that neither has.

    @overload
    def read_array(
        self, location: tuple[int, int], level: int | None, size: tuple[int, int], *, mpp: float | None = None
    ) -> Pixels: ...
    @overload
    def read_array(self, location: tuple[int, int], *, size: tuple[int, int], mpp: float | None = None) -> Pixels: ...
    @overload
    def read_array(
        self, x: int, y: int, width: int, height: int, *, level: int = 0, mpp: float | None = None
    ) -> Pixels: ...

    def read_array(self, *region: Any, mpp: float | None = None, **named: Any) -> Pixels:
        """The pixels (height, width, 3) uint8 from (x, y) in level-0 pixels; background beyond the level's edge.

        `read_array((x, y), level, (width, height))`, as OpenSlide orders it, and `read_array(x, y, width, height,
        level=level)` are the same. Width and height count pixels of `level`, or of the resolution `mpp` in microns per
        pixel, which is resampled from the next finer level. Raises UsageError for `mpp` where the slide does not state
        its own.

        Memory: as `read`; with `mpp`, as `resampled`: the finer level is read in strips.
        """
        (x, y), level, (width, height) = asked("read_array", region, named)
        if mpp is None:
            return self.read(self._region_at((x, y), level, (width, height)), level)
        if self.mpp is None:
            raise UsageError(f"{self.name}: its resolution is not known, so --mpp cannot be used; name a level instead")
        if not mpp > 0:
            raise UsageError(f"mpp {mpp}; a resolution above 0 is needed")
        factors = (mpp / self.mpp[0], mpp / self.mpp[1])
        level = self.level_for_factor(min(factors))
        downsample = self.levels[level].downsample
        size = (max(1, round(width * factors[0] / downsample)), max(1, round(height * factors[1] / downsample)))
        found = self._region_at((x, y), level, size)
        if size == (width, height):
            return self.read(found, level)
        if found.area <= STRIP_PIXELS:
            resized = Image.fromarray(self.read(found, level)).resize((width, height), Image.Resampling.LANCZOS)
            return np.array(resized)  # a copy: the caller may write to it
        if max(size) > MAX_SIDE:
            raise UsageError(f"{self.name}: {width}x{height} at mpp {mpp:g} need {size[0]}x{size[1]} of level {level}")

        def rows(start: int, end: int) -> Pixels:
            return self.read(Region(found.x, found.y + start, found.width, end - start), level)

        return resampled(rows, size, (width, height))

    @overload
    def read_tensor(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> "torch.Tensor": ...
    @overload
    def read_tensor(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> "torch.Tensor": ...

    def read_tensor(self, *asked_for: Any, **named: Any) -> "torch.Tensor":
        """`read_array` as a tensor (height, width, 3) uint8 on the slide's device, in either order of arguments. A GPU
        with exact kernels takes compressed bytes and keeps the pixels, which pays for regions of many megapixels."""
        import torch

        location, level, (width, height) = asked("read_tensor", asked_for, named)
        region, decoder = self._region_at(location, level, (width, height)), self.decoder
        if (gpu_regions := decoder.gpu_regions) is None:
            return torch.from_numpy(self.read(region, level)).to(decoder.device or "cpu")
        inside = region.intersect(self.levels[level].region)
        if inside == region:
            return gpu_regions.region(level, region)
        colour = torch.tensor(self.background or WHITE, dtype=torch.uint8, device=decoder.device)
        pixels = colour.repeat(height, width, 1)
        if not inside.empty:
            pixels[inside.within(region)] = gpu_regions.region(level, inside)
        return pixels

    @overload
    def read_batch(self, locations: Sequence[tuple[int, int]], level: int, size: tuple[int, int]) -> Pixels: ...
    @overload
    def read_batch(self, locations: Sequence[tuple[int, int]], size: tuple[int, int], *, level: int = 0) -> Pixels: ...

    def read_batch(self, locations: Sequence[tuple[int, int]], *where: Any, **named: Any) -> Pixels:
        """The pixels (N, height, width, 3) uint8 of N regions of one `size` (width, height), at locations (x, y) in
        level-0 pixels: `read_batch(locations, level, size)`, as OpenSlide orders it, or `read_batch(locations, size,
        level=level)`. A chunk that several regions share is decoded once, as far as the cache reaches.

        Memory: the result, the cache, a few chunks of each worker, some 10 MB, and 100 bytes for each location.
        """
        level, size = level_and_size("read_batch", where, named)
        self._checked_level(level)  # even without any location
        pixels = np.empty((len(locations), size[1], size[0], 3), np.uint8)
        # Neighbours together, so that they share what is decoded; all at once, their chunks would be many objects.
        side = self.container.attributes.chunk_side * self.levels[level].downsample
        order = sorted(range(len(locations)), key=lambda i: (locations[i][1] // side, locations[i][0] // side))
        for start in range(0, len(order), BATCH_REGIONS):
            numbers = order[start : start + BATCH_REGIONS]
            regions = [self._region_at(locations[i], level, size) for i in numbers]
            self._read_regions(regions, level, [pixels[i] for i in numbers])
        return pixels

    def read_regions(self, regions: Sequence[Region], level: int) -> list[Pixels]:
        """`read` of several regions of one level, (h, w, 3) uint8 each; a chunk that several share is decoded once.

        Memory: the result, the cache, a few chunks of each worker, and at most BATCH_CHUNKS chunks for each region.
        """
        self._checked_level(level)
        pixels = [np.empty((region.height, region.width, 3), np.uint8) for region in regions]
        self._read_regions(regions, level, pixels)
        return pixels

    def _read_regions(self, regions: Sequence[Region], level: int, pixels: Sequence[Pixels]) -> None:
        """Writes the pixels of regions of a level to the arrays `pixels`."""
        attributes, decoder = self.container.attributes, self.decoder
        insides = [region.intersect(self.levels[level].region) for region in regions]
        readers: dict[ChunkKey, list[int]] = {}  # the numbers of the regions that need a chunk
        large: set[int] = set()
        for i, inside in enumerate(insides):
            if inside != regions[i]:  # only where it will be seen: it is slow
                pixels[i][...] = self.background or WHITE
            keys = decoder.reader.stored_in(level, inside)
            first = list(islice(keys, BATCH_CHUNKS + 1))
            if len(first) > BATCH_CHUNKS:
                large.add(i)
                decoder.copy(level, inside, pixels[i][inside.within(regions[i])])
                continue
            if decoder.reader.has_background(level, inside):
                pixels[i][inside.within(regions[i])] = decoder.reader.stats.background
            for key in first:
                readers.setdefault(key, []).append(i)
        crowded = decoder.crowded(insides, readers)
        near = {i for key in crowded for i in readers[key]}
        direct = [
            i for i, inside in enumerate(insides) if i not in large | near and decoder.prefers_direct(level, inside)
        ]
        parts = decoder.workers.map(lambda i: decoder.read_direct_here(level, insides[i]), direct)
        for i, part in zip(direct, parts, strict=True):
            pixels[i][insides[i].within(regions[i])] = part
        alone = set(direct)
        for key, chunk in decoder.chunks(sorted(key for key, numbers in readers.items() if alone.isdisjoint(numbers))):
            chunk_region = attributes.chunk_region(key)
            for i in readers[key]:
                shared = chunk_region.intersect(regions[i])
                pixels[i][shared.within(regions[i])] = chunk[shared.within(chunk_region)]

    def latents(self, level: int = 0) -> "zarr.Array":  # type: ignore[type-arg]  # zarr's own default parameters
        """The quantised latents of a level, (C, ⌈H / stride⌉, ⌈W / stride⌉) int8 or int16, as an ordinary Zarr array
        that is decoded, and held to its checks, as it is indexed. Memory: a few times the latents that are asked for,
        and the cache."""
        import zarr  # here: pixels need no zarr

        from histocodec.formats.decode.latents_view import LatentsView

        return zarr.open_array(LatentsView(self, self._checked_level(level)).zarr(), mode="r")

    @property
    def chunk_reader(self) -> "ChunkReader":
        """What reads the slide's chunks: that of its pixels' decoder, once there is one. Raises UsageError where the
        slide is closed."""
        self._check_open()
        if self._decoder is not None:
            return self._decoder.reader
        reader = self._reader
        if reader is None:
            from histocodec.formats.decode.chunks import ChunkReader

            reader = ChunkReader(self.container, self.weights, self._workers, cache=self._cache)
            with self._lock:
                self._check_open()
                reader = self._reader = self._reader or reader
        return reader

    @property
    def model_id(self) -> str:
        """The id of the model that the slide was encoded with."""
        return self.weights.id

    @property
    def decoder(self) -> "PixelDecoder":
        """What decodes the slide's pixels, made at the first use. Raises UsageError or UnsupportedError for a device
        that is not there."""
        self._check_open()
        decoder = self._decoder
        if decoder is None:
            from histocodec.codec.native import decodes_natively
            from histocodec.device import choose_device, means_cpu
            from histocodec.formats.decode.pixels import PixelDecoder

            # Made without the lock, since it waits for a worker. Where two threads make one, the first is taken.
            device = None if means_cpu(self.device) and decodes_natively(self.weights) else choose_device(self.device)
            decoder = PixelDecoder(self.container, self.weights, device, self._workers, cache=self._cache)
            with self._lock:
                self._check_open()
                decoder = self._decoder = self._decoder or decoder
        return decoder

    def __reduce__(self) -> tuple[Callable[[Location], "CompressedSlide"], tuple[Location]]:
        path, device, cache_bytes, workers = self._arguments
        return partial(CompressedSlide, device=device, cache_bytes=cache_bytes, workers=workers), (path,)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{level.width}x{level.height}" for level in self.levels)
        return f"<CompressedSlide {self.name!r}: {sizes}, {self.model_id}>"
