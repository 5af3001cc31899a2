"""Slides to containers, in a stream of shards: read, analyse, quantise and code block by block, then measure.

    prepare   background, statistics, quality                       a few seconds, a bounded sample
    encode    shard by shard: every worker takes a block of 2×2 chunks from its pixels to its bytes
    measure   every chunk decoded as a reader will decode it, and compared with the source
    raise     with --min-psnr: chunks below it get more quality, or are stored losslessly; see `guarantee.py`
    finish    maps, overview, integrity; then the folder gets its name

Memory is bounded by the workers' blocks and two shards of coded bytes, whatever the slide's size. A block is always
computed on one thread from the same window, so the bytes do not depend on the number of workers, nor on resuming.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from histocodec.codec.chunk import fast_chunk_codec
from histocodec.codec.quantise import Quantiser
from histocodec.codec.transform import Transform
from histocodec.codec.window import Window, latent_slices, margin_of, pad_pixels
from histocodec.device import choose_device
from histocodec.errors import OutputError, SourceError, UsageError
from histocodec.formats.container import write as files
from histocodec.formats.container.attributes import (
    Attributes,
    BackgroundAttributes,
    DType,
    LevelAttributes,
    ModelReference,
    SourceAttributes,
)
from histocodec.formats.container.layout import CODED
from histocodec.formats.container.read import Container, Stats, lossless_bytes, sizes
from histocodec.formats.decode.fidelity import Floor, LevelFidelity, measure_level
from histocodec.formats.encode.extras import write_extras
from histocodec.formats.encode.guarantee import Guarantee
from histocodec.formats.encode.journal import Journal, Json, source_identity
from histocodec.formats.encode.options import EncodeOptions, EncodeProgress, EncodeReport
from histocodec.formats.encode.partial import Growing, Maps, Place, StoredChunk
from histocodec.formats.encode.privacy import without_private
from histocodec.formats.encode.progress import Clock
from histocodec.formats.encode.sampling import SampleSource, choose_quality, tissue_example
from histocodec.formats.encode.statistics import refined_stats
from histocodec.geometry import ChunkKey, Grid, Level, Region, ceil_div
from histocodec.models.config import CHUNK_PIXELS, QUALITIES, HyperConfig
from histocodec.models.weights import ModelWeights, find_model
from histocodec.normalise import ChannelStats, tissue_stats
from histocodec.slide import Colour, Pixels, Slide
from histocodec.sources import with_pyramid
from histocodec.threads import Workers
from histocodec.tissue import ALIGNED_GLASS, coarse_view, estimate_background, glass_share, is_background
from histocodec.version import VERSION

BLOCK = 2  # chunks a side that are analysed together: a smaller share of the window is margin
MOST_CHOSEN = 4  # qualities that are tried for that, where a target has to be met
SHARD = 8  # chunks a side of a shard, at most; its index has 16 bytes for each, so a small slide has smaller ones

_DTYPES: dict[int, DType] = {1: "int8", 2: "int16"}


def encode_slide(
    slide: Slide,
    dst: Path,
    options: EncodeOptions | None = None,
    *,
    progress: Callable[[EncodeProgress], None] | None = None,
) -> EncodeReport:
    """Encodes `slide` into a new container at `dst`, which is complete or absent.

    An interrupt, a full disk or, after the first shard, an unreadable source leaves `<dst>.partial` for `resume`.
    Raises UsageError, SourceError, OutputError, MissingModelError.
    """
    began = time.perf_counter()
    options = options or EncodeOptions()
    weights, device = find_model(options.model), choose_device(options.device)
    options = replace(options, effort=options.effort_with(weights))
    slide = with_pyramid(slide) if options.levels is None else slide
    workers = Workers(options.workers)
    asked = _fingerprint(slide, options, weights)
    try:
        with Journal.start(dst, asked, resume=options.resume, overwrite=options.overwrite) as journal:
            try:
                encoder = _Encoder(slide, options, weights, device, workers, journal, progress)
                attributes, outcome = encoder.run()
                if _fingerprint(slide, options, weights) != asked:  # a chunk that Zarr misses reads as zeros
                    raise SourceError(f"{slide.name}: changed or vanished while it was read")
                journal.commit(overwrite=options.overwrite)
            except (OutputError, KeyboardInterrupt):
                raise  # the partial container stays, for --resume
            except BaseException as exc:
                if not (isinstance(exc, SourceError) and journal.records):  # a passing fault costs no finished shard
                    journal.discard()
                raise
    finally:
        workers.close()
    return _report(dst, attributes, slide, options.quality, outcome, time.perf_counter() - began, str(device))


@dataclass(frozen=True)
class _Task:
    """One block to encode: its level in the container, and its row and column in blocks."""

    level: int
    row: int
    column: int


class _Encoder:
    """One encode from its plan to the finished folder. Everything that its workers share is made here, once."""

    def __init__(
        self,
        slide: Slide,
        options: EncodeOptions,
        weights: ModelWeights,
        device: torch.device,
        workers: Workers,
        journal: Journal,
        progress: Callable[[EncodeProgress], None] | None,
    ) -> None:
        self.slide, self.options, self.weights, self.workers, self.journal = slide, options, weights, workers, journal
        self.device = device
        self.source_levels = _chosen_levels(slide, options)
        self.clock = Clock(progress, 2 * sum(slide.levels[i].region.area for i in self.source_levels))
        self.transform = workers.run(lambda: Transform(weights, device))  # on one core, as in PixelDecoder
        self.coder = workers.run(lambda: fast_chunk_codec(weights))
        view = coarse_view(slide)
        self.background: Colour = estimate_background(slide, view)
        self.stats = tissue_stats(slide, background=self.background, view=view, mapped=workers.map)
        self.floor = None if options.min_psnr is None else Floor(options.min_psnr, self.transform.dtype)
        # Not of a `vae`, which never saw glass: what makes it right moves the colour of tissue by several grey values.
        glass = glass_share(view, slide.levels[0], self.background, side=CHUNK_PIXELS)
        aligned = glass >= ALIGNED_GLASS and isinstance(weights.config, HyperConfig)
        self.glass = self.background if aligned else None  # the colour that must be decoded exactly
        self.quality = -1  # none yet
        effort = options.effort or 0
        self._settle(effort=0)
        settled = self.stats
        if isinstance(weights.config, HyperConfig):
            self._refine(effort=effort)
        if options.has_target and (effort or self.stats != settled):
            self._settle(effort=effort)
        self.quantiser = self._quantiser(effort)
        highest = self.quality if self.floor is None else QUALITIES - 1  # that any chunk may get
        self.dtype = self._latent_dtype(highest)
        self.attributes = _attributes(self, self.quality, _DTYPES[self.dtype.itemsize])
        self.growing = Growing(journal, self.attributes)
        self.block = min(BLOCK, self.attributes.shard)

    def _settle(self, *, effort: float) -> None:
        """Chooses the quality. Another one decodes glass exactly with other statistics, which change rate and PSNR a
        little, so that a target is sought again. A quality between two whole ones is the lower of a fainter slide."""
        measured = self.stats
        for _ in range(MOST_CHOSEN):
            before = self.quality
            wanted = choose_quality(self.options, self._sampled(), self._quantiser(effort), self.workers)
            self.quality = int(wanted)
            if self.glass is None or self.quality == before:
                break
            self.stats = self._aligned(measured, self.quality)
        if wanted > self.quality:
            factor = self.weights.hyper.fainter_by(wanted, self.quality)
            self.stats = self._aligned(self.stats.fainter(self.background, factor), self.quality)

    def _refine(self, *, effort: float) -> None:
        """Takes the statistics that this slide is coded best with, and the quality that goes with them; glass stays
        exact."""
        source = self._sampled()
        self.stats, self.quality = refined_stats(
            source, self.quality, self.transform, self.coder, self.workers, effort=effort, align=self._aligned
        )

    def _aligned(self, stats: ChannelStats, quality: int) -> ChannelStats:
        glass = self.glass
        return stats if glass is None else self.workers.run(lambda: self.transform.aligned(stats, glass, quality))

    def _latent_dtype(self, quality: int) -> np.dtype[np.signedinteger]:
        """int8 where even flat black, white and pure colours fit, else int16."""
        gain = self.weights.gain(quality)

        def peak(corner: Colour) -> float:
            return float(np.abs(self.transform.analyse_colour(corner, self.stats) * gain).max())

        corners = [(r, g, b) for r in (0, 255) for g in (0, 255) for b in (0, 255)]
        return np.dtype(np.int8) if max(self.workers.map(peak, corners)) < 127 else np.dtype(np.int16)

    def _sampled(self) -> SampleSource:
        attributes = _attributes(self, 0, "int8")
        return SampleSource(self.slide, self.source_levels, self.background, self.stats, self._skips, attributes)

    def _quantiser(self, effort: float) -> Quantiser:
        example = partial(tissue_example, self._sampled(), self.transform)
        return Quantiser(self.transform, self.coder, self.stats, example, effort=effort, background=self.glass)

    def run(self) -> "tuple[Attributes, _Outcome]":
        """Writes the whole container into the journal's partial folder; the final attributes, and how it went."""
        root, numbers = self.journal.partial, range(len(self.source_levels))
        files.create_skeleton(root, self.attributes)
        for level in numbers:
            self._encode_level(level)
        files.write_stats(root, self.attributes, self.workers.run(self._stats))
        guarantee = None if self.floor is None else self._guarantee(self.floor)
        for level in numbers:
            if guarantee is not None:
                guarantee.restore(level)
            self.growing.write_maps(level)
        levels, outcomes = [], []
        for level in numbers:
            fidelity = self._measure(level)
            if guarantee is not None:
                fidelity = guarantee.hold(level, fidelity, self._measure_again)
            files.write_array(root, self.attributes, f"psnr/{level}", fidelity.psnr)
            files.write_block_error(root, self.attributes, level, fidelity.block_error.astype(np.float32))
            maps = self.growing.maps(level)
            levels.append(replace(self.attributes.levels[level], bytes=maps.bytes, psnr=fidelity.total))
            outcomes.append(_Outcome.of(maps, fidelity, self.quality))
        attributes = replace(self.attributes, levels=tuple(levels))
        attributes = write_extras(root, attributes, self.slide, self.options, self.weights)
        files.finish(root, attributes)
        return attributes, _Outcome.of_all(outcomes)

    def _encode_level(self, level: int) -> None:
        grid, across = self.attributes.grid(level), self.attributes.shard
        blocks = across // self.block
        shards = [
            (row, column)
            for row in range(grid.shard_rows)
            for column in range(grid.shard_columns)
            if (level, row, column) not in self.journal.records
        ]
        tasks = [
            [
                _Task(level, r, c)
                for r in range(row * blocks, min((row + 1) * blocks, ceil_div(grid.chunk_rows, self.block)))
                for c in range(column * blocks, min((column + 1) * blocks, ceil_div(grid.chunk_columns, self.block)))
            ]
            for row, column in shards
        ]
        skipped = grid.shard_rows * grid.shard_columns - len(shards)
        if skipped:
            missing = sum(self._block_region(task).area for group in tasks for task in group)
            self.clock.skip("encode", self._size(level).region.area - missing)
        results = self.workers.map(self._encode_block, (task for group in tasks for task in group))
        for (row, column), group in zip(shards, tasks, strict=True):
            chunks: dict[Place, StoredChunk] = {}
            for task in group:
                chunks.update(next(results))
                self.clock.add("encode", self._block_region(task).area)
            self.growing.write_shard(level, (row, column), chunks)

    def _encode_block(self, task: _Task) -> dict[Place, StoredChunk]:
        """The chunks of one block that are not background, on this thread."""
        level = self._size(task.level).region
        block = self._block_region(task)
        config, stride = self.weights.config, self.weights.config.stride
        kept = block.expanded(config.synthesis_halo * stride).intersect(level) if self.quantiser.effort else block
        window = kept.expanded(config.analysis_halo * stride).intersect(level)
        pixels = self.slide.read(window, self.source_levels[task.level])
        side = self.attributes.chunk_side
        grid = Grid(level.height, level.width, side)
        coded = [p for p in grid.squares_in(block) if not self._skips(pixels[grid.region(*p).within(window)])]
        if not coded:
            return {}
        y = self.transform.analyse(pad_pixels(pixels, stride), margin_of(kept, window, stride), self.stats)
        chunks = {}
        for place in coded:
            own = grid.region(*place)
            around_it = own.expanded(config.synthesis_halo * stride).intersect(kept)
            part = Window(
                y[latent_slices(around_it, kept, stride)], margin_of(own, around_it, stride), pixels[own.within(window)]
            )
            data = self.quantiser.coded(part, self.quality, self.attributes.chunk, self.dtype)
            chunks[place] = StoredChunk(CODED, data)
        return chunks

    def _skips(self, pixels: Pixels) -> bool:
        """Whether a chunk of these pixels is left out as background."""
        if self.options.background != "skip" or not is_background(pixels, self.background):
            return False
        return self.floor is None or self.floor.skips(pixels, self.background)

    def _guarantee(self, floor: Floor) -> Guarantee:
        return Guarantee(
            floor, self.growing, self.slide, self.source_levels, self.quantiser, self.dtype, self.quality, self.workers,
            extend=self.clock.extend, done=lambda pixels: self.clock.add("raise", pixels),
        )  # fmt: skip

    def _measure(self, level: int) -> LevelFidelity:
        """All chunks of a level but background."""
        fidelity = self._measured(level, "measure", None, None)
        self.clock.skip("measure", self._size(level).region.area - int(np.nansum(fidelity.samples)) // 3)
        return fidelity

    def _measure_again(self, keys: Sequence[ChunkKey], previous: LevelFidelity) -> LevelFidelity:
        return self._measured(previous.level, "raise", keys, previous)

    def _measured(
        self, level: int, stage: str, keys: Sequence[ChunkKey] | None, previous: LevelFidelity | None
    ) -> LevelFidelity:
        container = Container(self.journal.partial, self.attributes)
        return measure_level(
            container, self.weights, self.device, self.workers, self.slide, self.source_levels[level], level,
            lambda pixels: self.clock.add(stage, pixels), keys=keys, previous=previous, dtype=self.transform.dtype,
        )  # fmt: skip

    def _stats(self) -> Stats:
        """What undoes the normalisation, and what the synthesis sees in place of a background chunk."""
        y = self.transform.analyse_colour(self.background, self.stats)
        scaled = y * self.weights.gain(self.quality) * self.weights.inverse_gain(self.quality)
        return Stats(self.stats, np.array(self.background, np.uint8), scaled.astype(np.float32))

    def _size(self, level: int) -> Level:
        return self.slide.levels[self.source_levels[level]]

    def _block_region(self, task: _Task) -> Region:
        size = self._size(task.level)
        return Grid(size.height, size.width, self.block * self.attributes.chunk_side).region(task.row, task.column)


@dataclass(frozen=True)
class _Outcome:
    """What became of the chunks that are not background: how many, and the worst of them."""

    chunks: int
    raised: int
    lossless: int
    worst_psnr: float | None
    worst_block_error: float | None

    @classmethod
    def of(cls, maps: Maps, fidelity: LevelFidelity, quality: int) -> "_Outcome":
        measured = maps.stored > 0
        return cls(
            maps.stored, maps.raised(quality), maps.lossless,
            float(np.nanmin(fidelity.psnr)) if measured else None,
            float(np.nanmax(fidelity.block_error)) if measured else None,
        )  # fmt: skip

    @classmethod
    def of_all(cls, levels: "Sequence[_Outcome]") -> "_Outcome":
        return cls(
            sum(one.chunks for one in levels),
            sum(one.raised for one in levels),
            sum(one.lossless for one in levels),
            min((one.worst_psnr for one in levels if one.worst_psnr is not None), default=None),
            max((one.worst_block_error for one in levels if one.worst_block_error is not None), default=None),
        )


def _chosen_levels(slide: Slide, options: EncodeOptions) -> tuple[int, ...]:
    there = range(len(slide.levels))
    chosen = tuple(there) if options.levels is None else tuple(sorted(set(options.levels)))
    wrong = [level for level in chosen if level not in there]
    if wrong or not chosen:
        raise UsageError(f"{slide.name}: level {wrong[0] if wrong else '(none)'} is not there; it has 0 to {there[-1]}")
    if 0 not in chosen:
        raise UsageError(f"{slide.name}: --levels must include 0, to which all others refer")
    return chosen


def _attributes(encoder: _Encoder, quality: int, dtype: DType) -> Attributes:
    """As far as they are known before the first shard."""
    slide, weights = encoder.slide, encoder.weights
    file = Path(slide.name)
    vendor = slide.properties.get("openslide.vendor", file.suffix[1:] or "array")
    properties = dict(slide.properties) if encoder.options.keep_private else without_private(slide.properties)[0]
    return Attributes(
        generator=f"histocodec {VERSION}",
        model=ModelReference(
            weights.id, weights.sha256, weights.config.latent_channels, weights.config.stride, weights.config.family
        ),
        levels=tuple(
            LevelAttributes(level.width, level.height, level.downsample, dtype, quality)
            for level in (slide.levels[i] for i in encoder.source_levels)
        ),
        background=BackgroundAttributes("code" if encoder.options.background == "code" else "skip", encoder.background),
        source=SourceAttributes(file.name, source_bytes(slide), vendor),
        mpp=slide.mpp,
        objective_power=slide.objective_power,
        properties=properties,
        chunk=weights.config.chunk,
        shard=_shard_side(slide.levels[0]),
    )


def _shard_side(level: Level) -> int:
    """The smallest power of two that holds the level in one shard, SHARD at most."""
    chunks = ceil_div(max(level.width, level.height), CHUNK_PIXELS)
    return min(SHARD, 1 << (chunks - 1).bit_length())


def source_bytes(slide: Slide) -> int | None:
    """The size of the source, where it is a file."""
    try:
        return Path(slide.name).stat().st_size if Path(slide.name).is_file() else None
    except OSError:
        return None


def _fingerprint(slide: Slide, options: EncodeOptions, weights: ModelWeights) -> dict[str, Json]:
    """Everything that the bytes depend on; a resumed encode must agree in all of it."""
    file = Path(slide.name)
    return {
        "generator": f"histocodec {VERSION}",
        "source": source_identity(file) if file.is_file() else {"name": slide.name, "folder": file.is_dir()},
        "sizes": [[level.width, level.height] for level in slide.levels],
        "mpp": None if slide.mpp is None else list(slide.mpp),
        "model": weights.sha256,
        "rate": [options.quality, options.target_psnr, options.target_bpp, options.ratio],
        "min_psnr": options.min_psnr,
        "effort": options.effort,
        "levels": None if options.levels is None else list(options.levels),
        "background": options.background,
        "device": choose_device(options.device).type,
    }


def _report(
    dst: Path, attributes: Attributes, slide: Slide, asked: float | None, outcome: _Outcome, seconds: float, device: str
) -> EncodeReport:
    on_disk, first = sizes(dst), attributes.levels[0]
    pixels, source = first.width * first.height, source_bytes(slide)
    everything = sum(level.width * level.height for level in attributes.levels)
    level0 = (first.bytes or 0) + lossless_bytes(dst, 0)
    return EncodeReport(
        path=str(dst),
        bytes=on_disk.total,
        payload_bytes=on_disk.latents + on_disk.lossless + 8 * 3 + 3 + 4 * attributes.model.channels,
        width=first.width,
        height=first.height,
        bpp=8 * on_disk.total / pixels,
        ratio_raw=3 * pixels / on_disk.total,
        ratio_source_file=None if source is None else source / on_disk.total,
        ratio_level0=3 * pixels / level0 if level0 else None,
        psnr=first.psnr if first.psnr is not None else float("inf"),
        worst_psnr=outcome.worst_psnr,
        worst_block_error=outcome.worst_block_error,
        chunks=outcome.chunks,
        raised=outcome.raised,
        lossless=outcome.lossless,
        seconds=seconds,
        megapixels_per_second=everything / seconds / 1e6,
        device=device,
        model=attributes.model.id,
        quality=first.quality,
        asked_quality=asked if asked is None or asked % 1 else int(asked),
        levels=len(attributes.levels),
        dropped=attributes.dropped,
    )
