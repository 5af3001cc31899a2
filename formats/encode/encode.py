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
from numpy.typing import NDArray

from histocodec.codec.chunk import fast_chunk_codec
from histocodec.codec.quantise import Quantiser
from histocodec.codec.transform import Transform
from histocodec.device import choose_device
from histocodec.errors import OutputError, SourceError, UsageError
from histocodec.formats.container import write as files
from histocodec.formats.container.attributes import Attributes
from histocodec.formats.container.locations import is_url, local_path
from histocodec.formats.container.maps import LevelMaps
from histocodec.formats.container.model_files import beside_file, check_beside, write_beside
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
from histocodec.formats.encode.scope import selected_levels, source_sha256
from histocodec.formats.encode.unreadable import advising, check_readable, tolerant
from histocodec.formats.encode.upload import check_url, staging_path
from histocodec.geometry import ChunkKey, Grid, ShardKey
from histocodec.models.weights import ModelWeights, find_model
from histocodec.slide import Slide
from histocodec.sources import with_pyramid
from histocodec.threads import Workers
from histocodec.version import VERSION

PSNR_DIGITS = 4  # of a level's, in dB, as the attributes have it; a chunk's has two


def encode_slide(
    slide: Slide,
    dst: str | Path,
    options: EncodeOptions | None = None,
    *,
    progress: Callable[[EncodeProgress], None] | None = None,
    created: int | None = None,
) -> EncodeReport:
    """Encodes `slide` into a new container at `dst`, a path or URL, which is complete or absent.

    `created`, in seconds since 1970, is the time that the container names as its own; without it, that of
    SOURCE_DATE_EPOCH or the present.

    An interrupt, a full disk or, after the first shard, an unreadable source leaves `<dst>.partial` and
    `<dst>.journal`, from which `EncodeOptions(resume=True)` continues. Raises UsageError, SourceError, OutputError,
    MissingModelError.
    """
    began = time.perf_counter()
    options = options or EncodeOptions()
    url = str(dst) if is_url(str(dst)) else None
    place = local_path(str(dst)) if url is None else staging_path(url)  # where the container grows
    if url is not None:
        if options.model_beside:
            raise UsageError(f"{dst}: --model-beside is for folders of this machine; leave it out, or embed the model")
        check_url(url, overwrite=options.overwrite)
    weights, device = find_model(options.model), choose_device(options.device)
    weights.check_encodes()
    if options.model_beside:
        check_beside(place, weights)
    options = replace(options, effort=options.effort_with(weights))
    if getattr(slide, "read_whole", False):  # the file was read a moment ago, so that its SHA-256 costs next to nothing
        options = replace(options, source_sha256=True)
    derive = options.levels is None
    levelled = with_pyramid(slide) if derive else slide
    fingerprint = _fingerprint(levelled, options, weights)
    with (
        closing(Workers(options.workers)) as workers,
        Journal.start(
            place, fingerprint, resume=options.resume, overwrite=options.overwrite, url=url, created=created
        ) as journal,
    ):
        try:
            if options.on_error == "background":
                source = tolerant(slide, journal.unreadable, derive=derive)
            else:
                source = advising(slide, derive=derive)
            attributes, outcome = _write_container(
                source, options, weights, device, journal, workers, progress, len(slide.levels)
            )
            if _fingerprint(levelled, options, weights) != fingerprint:  # a chunk that Zarr misses reads as zeros
                raise SourceError(f"{slide.name}: changed or vanished while it was read")
            if options.model_beside:
                write_beside(place, weights)
            journal.commit(overwrite=options.overwrite)
        except (OutputError, KeyboardInterrupt):
            raise  # the partial container stays, for --resume
        except BaseException as exc:
            if not (isinstance(exc, SourceError) and journal.records):  # a passing fault costs no finished shard
                journal.discard()
            raise
    seconds = time.perf_counter() - began
    return make_report(
        place if url is None else url,
        attributes,
        outcome,
        unreadable=journal.unreadable.places(selected_levels(levelled, options)),
        asked_quality=options.quality,
        seconds=seconds,
        device=str(device),
        model_file=beside_file(place, weights) if options.model_beside else None,
    )


def _write_container(
    slide: Slide,
    options: EncodeOptions,
    weights: ModelWeights,
    device: torch.device,
    journal: Journal,
    workers: Workers,
    progress: Callable[[EncodeProgress], None] | None,
    stored_levels: int,
) -> tuple[Attributes, Outcome]:
    """Writes everything into the journal's partial folder. Returns the final attributes, and what became of the
    chunks."""
    source_levels = selected_levels(slide, options)
    check_extras(slide, options)
    clock = Clock(progress, 2 * sum(slide.levels[number].region.area for number in source_levels))
    clock.start()
    transform = workers.run(lambda: Transform(weights, device))  # on one core, as when decoding
    codec = workers.run(lambda: fast_chunk_codec(weights))
    plan = make_plan(slide, source_levels, options, transform, codec, workers, stored_levels)
    stats = workers.run(lambda: plan.stored_stats(transform))
    container = PartialContainer(journal, plan.attributes, stats)
    encoder = _Encoder(plan, plan.quantiser(transform, codec), container, workers, clock)
    attributes, outcome, maps, digests = encoder.run()
    unreadable = journal.unreadable.places(source_levels)
    check_readable(slide, unreadable)
    provenance = replace(attributes.provenance, created=journal.created)
    source = replace(attributes.source, sha256=source_sha256(slide, options))
    attributes = replace(attributes, provenance=provenance, source=source)
    attributes = write_extras(container.root, attributes, slide, options, weights, unreadable)
    container.remove_staged()
    return files.finish(container.root, attributes, stats, maps, digests), outcome


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
        "chunk": options.chunk,
        "overview": options.overview,  # with a target, the bytes that it takes decide about the quality
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

    def run(self) -> tuple[Attributes, Outcome, list[LevelMaps], NDArray[np.uint8]]:
        """Writes the shards of all levels. Returns the attributes with each level's bytes and PSNR, what became of the
        chunks, the maps of each level, and the digests of all shards."""
        attributes, container = self.container.attributes, self.container
        numbers, floor = range(len(attributes.levels)), self.plan.scope.floor
        minimum = None
        if floor is not None:
            minimum = MinimumPsnr(floor, self.plan, self.quantiser, container, self.workers, self.clock)
        for level in numbers:
            self._encode_level(level)
        levels, outcomes, maps = [], [], []
        for level in numbers:
            if minimum is not None:
                minimum.restore(level)
            fidelity = self._measure(level)
            if minimum is not None:
                fidelity = minimum.enforce(fidelity, self._measure_again)
            shards = container.maps(level)
            maps.append(container.level_maps(fidelity))
            psnr = round(fidelity.total, PSNR_DIGITS)
            levels.append(replace(attributes.levels[level], bytes=shards.bytes, psnr=psnr))
            outcomes.append(Outcome.of_level(shards, fidelity, self.plan.quality))
        digests = [container.maps(level).digests for level in numbers]
        if any(outcome.lossless for outcome in outcomes):
            digests += [container.pack_lossless(level, maps[level]) for level in numbers]
        attributes = replace(attributes, levels=tuple(levels))
        return attributes, Outcome.total(outcomes), maps, np.concatenate(digests)

    def _encode_level(self, level: int) -> None:
        """Writes the shards of a level that the journal does not have."""
        attributes, scope = self.container.attributes, self.plan.scope
        grid, size = attributes.grid(level), scope.level(level)
        regions = Grid(size.height, size.width, attributes.shard_side(level) * attributes.chunk_side)
        shards = [ShardKey(level, row, column) for row, column in np.ndindex(grid.shard_rows, grid.shard_columns)]
        missing = [shard for shard in shards if shard not in self.container.journal.records]
        if len(missing) < len(shards):
            pixels = sum(regions.region(shard.row, shard.column).area for shard in missing)
            self.clock.skip("encode", size.region.area - pixels)
        encoded = self.workers.map(
            lambda keys: encode_group(keys, self.plan, self.quantiser),
            (keys for shard in missing for keys in groups_of(shard, attributes)),
        )
        for shard in missing:
            chunks: dict[ChunkKey, StoredChunk] = {}
            for keys in groups_of(shard, attributes):
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
            self.container,
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
