"""A slide into a container, in a stream of shards: read, analyse, quantise and code group by group, then measure.

    prepare   a plan: background, statistics and quality, from a bounded sample in a few seconds
    encode    shard by shard: every worker takes a group of 2 × 2 chunks from its pixels to its bytes
    measure   every chunk is decoded as a reader will decode it, and compared with the source
    raise     with --min-psnr: chunks below it get a higher quality or are stored losslessly; see `minimum_psnr.py`
    finish    maps, overview and integrity are written; then the folder gets its name

Memory is bounded by the workers' groups and two shards of coded bytes, whatever the slide's size. README.md tells the
whole story, with what is on the disk at each moment.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from histocodec.codec.chunk import fast_chunk_codec
from histocodec.codec.quantise import Quantiser
from histocodec.codec.transform import Transform
from histocodec.device import choose_device
from histocodec.errors import OutputError, SourceError
from histocodec.formats.container import write as files
from histocodec.formats.container.attributes import Attributes
from histocodec.formats.container.read import Container
from histocodec.formats.container.store import FolderStore
from histocodec.formats.decode.fidelity import LevelFidelity, measure_level
from histocodec.formats.encode.extras import check_extras, write_extras
from histocodec.formats.encode.groups import encode_group, groups_of
from histocodec.formats.encode.journal import Journal, Json, source_identity
from histocodec.formats.encode.minimum_psnr import MinimumPsnr
from histocodec.formats.encode.options import EncodeOptions, EncodeProgress
from histocodec.formats.encode.partial_container import PartialContainer, StoredChunk
from histocodec.formats.encode.plan import Plan, make_plan
from histocodec.formats.encode.progress import Clock
from histocodec.formats.encode.report import EncodeReport, Outcome, make_report
from histocodec.formats.encode.scope import selected_levels
from histocodec.formats.encode.unreadable import advising, check_readable, tolerant
from histocodec.geometry import ChunkKey, Grid, ShardKey
from histocodec.models.weights import ModelWeights, find_model
from histocodec.slide import Slide
from histocodec.sources import with_pyramid
from histocodec.threads import Workers
from histocodec.version import VERSION


def encode_slide(
    slide: Slide,
    dst: Path,
    options: EncodeOptions | None = None,
    *,
    progress: Callable[[EncodeProgress], None] | None = None,
) -> EncodeReport:
    """Encodes `slide` into a new container at `dst`, which is complete or absent.

    An interrupt, a full disk or, after the first shard, an unreadable source leaves `<dst>.partial` and
    `<dst>.journal`, from which `EncodeOptions(resume=True)` continues. Raises UsageError, SourceError, OutputError,
    MissingModelError.
    """
    began = time.perf_counter()
    options = options or EncodeOptions()
    weights, device = find_model(options.model), choose_device(options.device)
    weights.check_encodes()
    options = replace(options, effort=options.effort_with(weights))
    derive = options.levels is None
    levelled = with_pyramid(slide) if derive else slide
    fingerprint = _fingerprint(levelled, options, weights)
    with (
        closing(Workers(options.workers)) as workers,
        Journal.start(dst, fingerprint, resume=options.resume, overwrite=options.overwrite) as journal,
    ):
        try:
            if options.on_error == "background":
                source = tolerant(slide, journal.unreadable, derive=derive)
            else:
                source = advising(slide, derive=derive)
            attributes, outcome = _write_container(source, options, weights, device, journal, workers, progress)
            if _fingerprint(levelled, options, weights) != fingerprint:  # a chunk that Zarr misses reads as zeros
                raise SourceError(f"{slide.name}: changed or vanished while it was read")
            journal.commit(overwrite=options.overwrite)
        except (OutputError, KeyboardInterrupt):
            raise  # the partial container stays, for --resume
        except BaseException as exc:
            if not (isinstance(exc, SourceError) and journal.records):  # a passing fault costs no finished shard
                journal.discard()
            raise
    seconds = time.perf_counter() - began
    return make_report(
        dst,
        attributes,
        outcome,
        unreadable=journal.unreadable.places(selected_levels(levelled, options)),
        asked_quality=options.quality,
        seconds=seconds,
        device=str(device),
    )


def _write_container(
    slide: Slide,
    options: EncodeOptions,
    weights: ModelWeights,
    device: torch.device,
    journal: Journal,
    workers: Workers,
    progress: Callable[[EncodeProgress], None] | None,
) -> tuple[Attributes, Outcome]:
    """Writes everything into the journal's partial folder. Returns the final attributes, and what became of the
    chunks."""
    source_levels = selected_levels(slide, options)
    check_extras(slide, options)
    clock = Clock(progress, 2 * sum(slide.levels[number].region.area for number in source_levels))
    clock.start()
    transform = workers.run(lambda: Transform(weights, device))  # on one core, as when decoding
    codec = workers.run(lambda: fast_chunk_codec(weights))
    plan = make_plan(slide, source_levels, options, transform, codec, workers)
    container = PartialContainer(journal, plan.attributes)
    attributes, outcome = _Encoder(plan, plan.quantiser(transform, codec), container, workers, clock).run()
    unreadable = journal.unreadable.places(source_levels)
    check_readable(slide, unreadable)
    attributes = write_extras(container.root, attributes, slide, options, weights, unreadable)
    files.finish(container.root, attributes)
    return attributes, outcome


def _fingerprint(slide: Slide, options: EncodeOptions, weights: ModelWeights) -> dict[str, Json]:
    """Everything that the latents depend on. A resumed encode must agree in all of it."""
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


@dataclass(frozen=True)
class _Encoder:
    """Carries out a plan. Its workers share all of this; what is done so far is in the journal alone."""

    plan: Plan
    quantiser: Quantiser
    container: PartialContainer
    workers: Workers
    clock: Clock

    def run(self) -> tuple[Attributes, Outcome]:
        """Writes latents, statistics and maps of all levels. Returns the attributes with each level's bytes and PSNR,
        and what became of its chunks."""
        root, attributes = self.container.root, self.container.attributes
        numbers, floor = range(len(attributes.levels)), self.plan.scope.floor
        minimum = None
        if floor is not None:
            minimum = MinimumPsnr(floor, self.plan, self.quantiser, self.container, self.workers, self.clock)
        files.create_skeleton(root, attributes)
        for level in numbers:
            self._encode_level(level)
        stats = self.workers.run(lambda: self.plan.stored_stats(self.quantiser.transform))
        files.write_stats(root, attributes, stats)
        for level in numbers:
            if minimum is not None:
                minimum.restore(level)
            self.container.write_maps(level)
        levels, outcomes = [], []
        for level in numbers:
            fidelity = self._measure(level)
            if minimum is not None:
                fidelity = minimum.enforce(fidelity, self._measure_again)
            files.write_array(root, attributes, f"psnr/{level}", fidelity.psnr)
            files.write_block_error(root, attributes, level, fidelity.block_error.astype(np.float32))
            maps = self.container.maps(level)
            levels.append(replace(attributes.levels[level], bytes=maps.bytes, psnr=fidelity.total))
            outcomes.append(Outcome.of_level(maps, fidelity, self.plan.quality))
        return replace(attributes, levels=tuple(levels)), Outcome.total(outcomes)

    def _encode_level(self, level: int) -> None:
        """Writes the shards of a level that the journal does not have."""
        attributes, scope = self.container.attributes, self.plan.scope
        grid, size = attributes.grid(level), scope.level(level)
        regions = Grid(size.height, size.width, attributes.shard * attributes.chunk_side)
        shards = [ShardKey(level, row, column) for row, column in np.ndindex(grid.shard_rows, grid.shard_columns)]
        missing = [shard for shard in shards if shard not in self.container.journal.records]
        if len(missing) < len(shards):
            pixels = sum(regions.region(shard.row, shard.column).area for shard in missing)
            self.clock.skip("encode", size.region.area - pixels)
        encoded = self.workers.map(
            lambda keys: encode_group(keys, self.plan, self.quantiser),
            (keys for shard in missing for keys in groups_of(shard, grid, attributes.shard)),
        )
        for shard in missing:
            chunks: dict[ChunkKey, StoredChunk] = {}
            for keys in groups_of(shard, grid, attributes.shard):
                chunks.update(next(encoded))
                self.clock.add("encode", scope.bounds(keys).area)
            self.container.write_shard(shard, chunks)

    def _measure(self, level: int) -> LevelFidelity:
        """All chunks of a level but background."""
        fidelity = self._measured(level, "measure", None, None)
        measured = int(np.nansum(fidelity.samples)) // 3  # pixels
        self.clock.skip("measure", self.plan.scope.level(level).region.area - measured)
        return fidelity

    def _measure_again(self, keys: Sequence[ChunkKey], previous: LevelFidelity) -> LevelFidelity:
        return self._measured(previous.level, "raise", keys, previous)

    def _measured(
        self, level: int, stage: str, keys: Sequence[ChunkKey] | None, previous: LevelFidelity | None
    ) -> LevelFidelity:
        scope, transform = self.plan.scope, self.quantiser.transform
        return measure_level(
            Container(FolderStore(self.container.root), self.container.attributes),
            transform.weights,
            transform.device,
            self.workers,
            scope.slide,
            scope.source_levels[level],
            level,
            lambda pixels: self.clock.add(stage, pixels),
            keys=keys,
            previous=previous,
            dtype=transform.dtype,
        )
