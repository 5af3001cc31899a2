"""What an encode will do, settled before its first shard is written.

    background    its colour, from a coarse view of the slide, and whether it is decoded exactly
    statistics    mean and deviation of the tissue
    quality       named, or sought on a sample until it meets the target
    search        `hyper` models: better statistics, and the quality that goes with them
    dtype         int8 if the latents of the most extreme colours fit, else int16

All of it comes from a bounded sample of the slide and is the same in every run: a resumed encode makes the same plan.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from histocodec.codec.chunk import ChunkCodec
from histocodec.codec.quantise import Quantiser
from histocodec.codec.transform import Transform
from histocodec.formats.container.attributes import Attributes, DType, Stats
from histocodec.formats.decode.fidelity import Floor
from histocodec.formats.encode.options import EncodeOptions
from histocodec.formats.encode.sampling import tissue_example
from histocodec.formats.encode.scope import Scope, draft_attributes
from histocodec.formats.encode.statistics import OperatingPoint, search_statistics
from histocodec.formats.encode.target import choose_quality
from histocodec.models.config import CHUNK_PIXELS, QUALITIES, HyperConfig
from histocodec.normalise import ChannelStats, tissue_stats
from histocodec.slide import Colour, Slide
from histocodec.threads import Workers
from histocodec.tissue import ALIGNED_SHARE, background_share, coarse_view, estimate_background

LATENT_STEPS = 64  # of the background's latent in a unit: a tenth of a grey value in the pixels beside background
MOST_ALIGNMENTS = 4  # of the statistics to a quality that changes with them, where a target has to be met

_DTYPES: dict[int, DType] = {1: "int8", 2: "int16"}  # by bytes per latent


@dataclass(frozen=True)
class Plan:
    """Everything that the bytes of the latents depend on beside the pixels and the model.

    Every chunk gets `quality`, except where the scope's floor needs a higher one. `dtype` holds the latents at every
    quality that a chunk may get.
    """

    scope: Scope
    stats: ChannelStats
    quality: int
    effort: float
    dtype: np.dtype[np.signedinteger]

    @property
    def attributes(self) -> Attributes:
        """The attributes of the container, as far as they are known before the first shard."""
        draft, dtype = self.scope.draft, _DTYPES[self.dtype.itemsize]
        return replace(draft, levels=tuple(replace(x, dtype=dtype, quality=self.quality) for x in draft.levels))

    def quantiser(self, transform: Transform, codec: ChunkCodec) -> Quantiser:
        """The quantiser that turns the latents of a window into the bytes of a chunk, as planned."""
        return _quantiser(self.scope, transform, codec, self.stats, self.effort)

    def stored_stats(self, transform: Transform) -> Stats:
        """The statistics that undo the normalisation, and the latent that the synthesis sees in place of background."""
        weights, colour = transform.weights, self.scope.background
        y = transform.analyse_colour(colour, self.stats)
        scaled = y * weights.gain(self.quality) * weights.inverse_gain(self.quality)
        scaled = np.rint(scaled * LATENT_STEPS) / LATENT_STEPS
        return Stats(self.stats, np.array(colour, np.uint8), scaled.astype(np.float32))


def make_plan(
    slide: Slide,
    source_levels: tuple[int, ...],
    options: EncodeOptions,
    transform: Transform,
    codec: ChunkCodec,
    workers: Workers,
    stored_levels: int,
) -> Plan:
    """Makes the plan for these levels of a slide, of which the first `stored_levels` are the source's own. Raises
    UsageError where the target cannot be met, and SourceError."""
    weights = transform.weights
    view = coarse_view(slide)
    background = estimate_background(slide, view)
    draft = draft_attributes(slide, source_levels, background, options, weights, stored_levels)
    floor = None if options.min_psnr is None else Floor(options.min_psnr, transform.dtype)
    # Not with a `vae`, which has never seen background: statistics that make it exact move the colour of tissue by
    # several grey values.
    share = background_share(view, slide.levels[0], background, side=CHUNK_PIXELS)
    exact = background if share >= ALIGNED_SHARE and isinstance(weights.config, HyperConfig) else None
    scope = Scope(slide, source_levels, draft, floor, exact)

    measured = tissue_stats(slide, background=background, view=view, map_with=workers.map)
    search = _Search(scope, options, transform, codec, workers)
    point = first = search.meet_target(measured, None, effort=0)
    effort = options.effort or 0
    if isinstance(weights.config, HyperConfig):
        point = search_statistics(scope, point, transform, codec, workers, effort=effort, align=search.align)
    if options.has_target and (effort or point.stats != first.stats):
        point = search.meet_target(point.stats, point.quality, effort=effort)
    highest = point.quality if floor is None else QUALITIES - 1
    dtype = _latent_dtype(transform, point.stats, highest, workers)
    return Plan(scope, point.stats, point.quality, effort, dtype)


@dataclass(frozen=True)
class _Search:
    """What stays the same while an operating point is sought."""

    scope: Scope
    options: EncodeOptions
    transform: Transform
    codec: ChunkCodec
    workers: Workers

    def meet_target(self, stats: ChannelStats, quality: int | None, *, effort: float) -> OperatingPoint:
        """The quality that the options name, or the one that meets their target on the sample, and the statistics that
        go with it. `stats` are already aligned to `quality`, if that is given.

        Another quality needs other statistics to decode the background exactly. These change rate and PSNR a little, so
        the target is then sought again. A quality with a fraction becomes the integer below it, and the slide is taken
        for a fainter one.
        """
        aligned = stats
        for _ in range(MOST_ALIGNMENTS):
            before = quality
            quantiser = _quantiser(self.scope, self.transform, self.codec, aligned, effort)
            chosen = choose_quality(self.options, self.scope, quantiser, self.workers)
            quality = int(chosen)
            if self.scope.exact_background is None or quality == before:
                break
            aligned = self.align(stats, quality)
        assert quality is not None  # there is at least one round
        if chosen > quality:
            factor = self.transform.weights.hyper.fainter_by(chosen, quality)
            aligned = self.align(aligned.fainter(self.scope.background, factor), quality)
        return OperatingPoint(aligned, quality)

    def align(self, stats: ChannelStats, quality: int) -> ChannelStats:
        """Moves the mean so that the background is decoded exactly at this quality, if the scope wants that."""
        colour = self.scope.exact_background
        if colour is None:
            return stats
        return self.workers.run(lambda: self.transform.aligned(stats, colour, quality))


def _quantiser(scope: Scope, transform: Transform, codec: ChunkCodec, stats: ChannelStats, effort: float) -> Quantiser:
    example = partial(tissue_example, scope, transform, stats)
    return Quantiser(transform, codec, stats, example, effort=effort, background=scope.exact_background)


def _latent_dtype(
    transform: Transform, stats: ChannelStats, highest: int, workers: Workers
) -> np.dtype[np.signedinteger]:
    """int8 where even flat black, white and pure colours fit at the highest quality that a chunk may get, else
    int16."""
    gain = transform.weights.gain(highest)

    def peak(corner: Colour) -> float:
        return float(np.abs(transform.analyse_colour(corner, stats) * gain).max())

    corners = [(r, g, b) for r in (0, 255) for g in (0, 255) for b in (0, 255)]
    return np.dtype(np.int8) if max(workers.map(peak, corners)) < 127 else np.dtype(np.int16)
