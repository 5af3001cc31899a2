"""A compressed slide, opened: a `Slide` like any other, and an OpenSlide one for everybody else's code."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import openslide
from PIL import Image

from histocodec.errors import FormatError, UsageError
from histocodec.formats.container.read import Container, is_container
from histocodec.geometry import ChunkKey, Grid, Level, Region
from histocodec.models.weights import ModelWeights, find_model, parse_model
from histocodec.slide import WHITE, Colour, LazyImages, Mpp, Pixels
from histocodec.threads import Workers

if TYPE_CHECKING:
    import torch
    import zarr

    from histocodec.formats.decode.blocks import BlockDecoder

CACHE_BYTES = 256 << 20
GPU_PIXELS = 4 << 20  # of a region that a GPU decodes as a whole, from bytes, at least: less leaves most of it idle
BATCH_PIXELS = 64 << 20  # pixels of blocks that read_batch holds at once, at most


def open_compressed(
    path: str | os.PathLike[str],
    *,
    device: str = "auto",
    cache_bytes: int = CACHE_BYTES,
    workers: int | None = None,
) -> "CompressedSlide":
    """Opens a container. Pixels are decoded on `device` ("auto", "cpu", "cuda", "cuda:1"), at most `cache_bytes` of
    what was decoded is kept. Raises UnsupportedError, FormatError or MissingModelError before anything is decoded.
    """
    return CompressedSlide(path, device=device, cache_bytes=cache_bytes, workers=workers)


class CompressedSlide(openslide.AbstractSlide):
    """See `open_compressed`. Thread-safe, picklable, and usable in the workers of a PyTorch DataLoader.

    torch is loaded when the first pixel is asked for, so facts and latents are there without it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        cache_bytes: int = CACHE_BYTES,
        workers: int | None = None,
    ) -> None:
        super().__init__()
        self._arguments = (os.fspath(path), device, cache_bytes, workers)
        self.container = Container.open(Path(path))
        self.weights = model_of(self.container)
        attributes = self.container.attributes
        self.name = str(path)
        self.device = device
        self.levels = tuple(Level(level.width, level.height, level.downsample) for level in attributes.levels)
        self.mpp: Mpp | None = attributes.mpp
        self.objective_power = attributes.objective_power
        self.background: Colour | None = attributes.background.colour
        self.icc_profile = self.container.icc_profile()
        self._profile = self.icc_profile
        self._properties = _properties(self)
        self._workers = Workers(workers)
        self._cache_bytes = cache_bytes
        self._decoder: BlockDecoder | None = None

    # What a `Slide` has.

    @property
    def properties(self) -> Mapping[str, str]:
        """The source's own properties, word for word, with OpenSlide's names for mpp and objective power."""
        return self._properties

    @property
    def associated(self) -> Mapping[str, Pixels]:
        names = self.container.attributes.associated
        return LazyImages({name: partial(self.container.associated, name) for name in names})

    def read(self, region: Region, level: int) -> Pixels:
        """The pixels of `region`, in the level's own pixels; background beyond the level's edge."""
        level = self._checked_level(level)
        pixels = np.empty((region.height, region.width, 3), np.uint8)
        inside = region.intersect(self.levels[level].region)
        if inside != region:
            pixels[...] = self.background or WHITE
        if (on_gpu := self.decoder.on_gpu) is not None and inside.area >= GPU_PIXELS:
            on_gpu.copy(level, inside, pixels[inside.within(region)])
            return pixels
        if self.decoder.apart(level, inside):
            pixels[inside.within(region)] = self.decoder.region(level, inside)
            return pixels
        grid = self._grid(level)
        for key, block in self._blocks(level, grid.squares_in(inside)):
            where = grid.region(*key)
            part = where.intersect(inside)
            pixels[part.within(region)] = block[part.within(where)]
        return pixels

    # What an OpenSlide has.

    @classmethod
    def detect_format(cls, filename: str | os.PathLike[str]) -> str | None:  # type: ignore[override]  # bytes paths are not taken
        """ "histocodec" where `filename` is a container, else None."""
        return "histocodec" if is_container(Path(filename)) else None

    @property
    def level_count(self) -> int:
        return len(self.levels)

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        return tuple((level.width, level.height) for level in self.levels)

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        return tuple(level.downsample for level in self.levels)

    @property
    def associated_images(self) -> Mapping[str, Image.Image]:
        images = self.associated

        def picture(name: str) -> Image.Image:
            return Image.fromarray(images[name])

        return LazyImages({name: partial(picture, name) for name in images})

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """The coarsest level that is no coarser than `downsample`; 0 where all are."""
        fitting = [i for i, level in enumerate(self.levels) if level.downsample <= downsample * (1 + 1e-9)]
        return fitting[-1] if fitting else 0

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """OpenSlide's: location in level-0 pixels, size in the level's; RGBA, transparent beyond the edge."""
        region = self._region(location, self._checked_level(level), size)
        rgba = np.zeros((region.height, region.width, 4), np.uint8)
        inside = region.intersect(self.levels[level].region)
        if not inside.empty:
            part = inside.within(region)
            rgba[(*part, slice(3))] = self.read(inside, level)
            rgba[(*part, 3)] = 255
        return Image.fromarray(rgba)

    # What neither has.

    def read_array(
        self, x: int, y: int, width: int, height: int, *, level: int = 0, mpp: float | None = None
    ) -> Pixels:
        """(height, width, 3) uint8. x and y in level-0 pixels, width and height in pixels of the level, or of the
        resolution `mpp` (microns per pixel; the next finer level, resampled)."""
        if mpp is None:
            return self.read(self._region((x, y), self._checked_level(level), (width, height)), level)
        if self.mpp is None:
            raise UsageError(f"{self.name}: its resolution is not known, so --mpp cannot be used; name a level")
        if not mpp > 0:
            raise UsageError(f"mpp {mpp}; a resolution above 0 is needed")
        factors = (mpp / self.mpp[0], mpp / self.mpp[1])
        level = self.get_best_level_for_downsample(min(factors))
        down = self.levels[level].downsample
        size = (max(1, round(width * factors[0] / down)), max(1, round(height * factors[1] / down)))
        pixels = self.read(self._region((x, y), level, size), level)
        if size == (width, height):
            return pixels
        filtered = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=None)
        return np.asarray(filtered)

    def read_tensor(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> "torch.Tensor":
        """`read_array` as a tensor (height, width, 3) uint8 on the slide's device. On a GPU with Triton, compressed
        bytes go up and pixels never come down; best for regions of many megapixels."""
        import torch

        level = self._checked_level(level)
        region = self._region((x, y), level, (width, height))
        if (on_gpu := self.decoder.on_gpu) is None:
            return torch.from_numpy(self.read(region, level)).to(self.decoder.device)
        inside = region.intersect(self.levels[level].region)
        if inside == region:
            return on_gpu.region(level, region)
        colour = torch.tensor(self.background or WHITE, dtype=torch.uint8, device=self.decoder.device)
        pixels = colour.repeat(height, width, 1)
        if not inside.empty:
            pixels[inside.within(region)] = on_gpu.region(level, inside)
        return pixels

    def read_batch(self, locations: Sequence[tuple[int, int]], size: tuple[int, int], *, level: int = 0) -> Pixels:
        """(N, height, width, 3) uint8: one region of `size` (width, height) at each location (x, y in level-0
        pixels). Blocks that several regions share are decoded once; memory beside the result is bounded."""
        level = self._checked_level(level)
        grid, decoder = self._grid(level), self.decoder
        regions = [self._region(location, level, size) for location in locations]
        insides = [region.intersect(self.levels[level].region) for region in regions]
        pixels = np.empty((len(regions), size[1], size[0], 3), np.uint8)
        pixels[...] = self.background or WHITE
        most = max(1, BATCH_PIXELS // grid.side**2)
        wanted: dict[tuple[int, int], list[int]] = {}
        for i, inside in enumerate(insides):
            for place in grid.squares_in(inside):
                wanted.setdefault(place, []).append(i)
        sharing = {i for some in wanted.values() if len(some) > 1 for i in some}
        apart = [i for i, inside in enumerate(insides) if i not in sharing and decoder.apart(level, inside)]
        parts = decoder.workers.map(lambda i: decoder.region_here(level, insides[i]), apart)
        for i, part in zip(apart, parts, strict=True):
            pixels[i][insides[i].within(regions[i])] = part
        left = set(range(len(regions))).difference(apart)
        places = sorted(place for place, some in wanted.items() if left.issuperset(some))
        for start in range(0, len(places), most):
            for place, block in self._blocks(level, places[start : start + most]):
                where = grid.region(*place)
                for i in wanted[place]:
                    shared = where.intersect(regions[i])
                    pixels[i][shared.within(regions[i])] = block[shared.within(where)]
        return pixels

    def latents(self, level: int = 0) -> "zarr.Array":  # type: ignore[type-arg]  # zarr's own default parameters
        """The quantised latents of a level, (C, H/16, W/16) for `hyper`, as an ordinary Zarr array of integers."""
        return self.container.latents(self._checked_level(level))

    @property
    def model_id(self) -> str:
        return self.weights.id

    @property
    def decoder(self) -> "BlockDecoder":
        if self._decoder is None:
            from histocodec.device import choose_device
            from histocodec.formats.decode.blocks import BlockDecoder

            device = choose_device(self.device)
            self._decoder = BlockDecoder(
                self.container, self.weights, device, self._workers, cache_bytes=self._cache_bytes
            )
        return self._decoder

    def close(self) -> None:
        self._workers.close()
        self._decoder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> Literal[False]:
        self.close()
        return False

    def __reduce__(self) -> tuple[Callable[[str], "CompressedSlide"], tuple[str]]:
        path, device, cache_bytes, workers = self._arguments
        return partial(CompressedSlide, device=device, cache_bytes=cache_bytes, workers=workers), (path,)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{level.width}x{level.height}" for level in self.levels)
        return f"<CompressedSlide {self.name!r}: {sizes}, {self.model_id}>"

    def _checked_level(self, level: int) -> int:
        if not 0 <= level < len(self.levels):
            raise UsageError(f"{self.name}: level {level} does not exist; it has 0 to {len(self.levels) - 1}")
        return level

    def _region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Region:
        down = self.levels[level].downsample
        return Region(round(location[0] / down), round(location[1] / down), *size)

    def _grid(self, level: int) -> Grid:
        return Grid(self.levels[level].height, self.levels[level].width, self.container.attributes.chunk_side)

    def _blocks(self, level: int, places: Iterable[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], Pixels]]:
        """((row, column), pixels) of each block, in order."""
        for key, pixels in self.decoder.blocks(ChunkKey(level, *place) for place in places):
            yield (key.row, key.column), pixels


def model_of(container: Container) -> ModelWeights:
    """The model that a container names: its embedded one, else the installed one of that id and SHA-256."""
    named, embedded = container.attributes.model, container.model_bytes()
    if embedded is None:
        weights = find_model(named.id, named.sha256)
    else:
        weights = parse_model(embedded, name=f"{container.path}: embedded model")
    config = weights.config
    said = f"family {named.family}, stride {named.stride} and {named.channels} channels"
    true = f"family {config.family}, stride {config.stride} and {config.latent_channels} channels"
    if said != true:
        raise FormatError(f"{container.path}: says that model {named.id} has {said}; it has {true}")
    return weights


def _properties(slide: CompressedSlide) -> Mapping[str, str]:
    attributes = slide.container.attributes
    properties = dict(attributes.properties)
    if attributes.mpp is not None:
        properties[openslide.PROPERTY_NAME_MPP_X] = str(attributes.mpp[0])
        properties[openslide.PROPERTY_NAME_MPP_Y] = str(attributes.mpp[1])
    if attributes.objective_power is not None:
        properties[openslide.PROPERTY_NAME_OBJECTIVE_POWER] = f"{attributes.objective_power:g}"
    return properties
