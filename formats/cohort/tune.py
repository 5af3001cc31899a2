"""Which quality a cohort needs for a wanted fidelity: from a sample of slides, and of each a sample of its tissue.

Each sampled chunk is coded without the latent search and decoded at several qualities. That is an estimate: an encode
measures every chunk, and with more effort it differs a little.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histocodec.errors import HistocodecError, UsageError
from histocodec.fidelity import psnr, squared_error
from histocodec.formats.cohort.find import Found, find_slides
from histocodec.formats.cohort.objects import local_copy
from histocodec.formats.container.shard import CRC_BYTES
from histocodec.formats.encode.options import DEFAULT_QUALITY, EncodeOptions
from histocodec.formats.encode.sampling import sampled_chunks, spread
from histocodec.models.weights import DEFAULT_MODEL
from histocodec.sources import open_slide
from histocodec.threads import Workers

SLIDES = 12
CHUNKS = 16  # of level 0 of each slide, 4 megapixels: their mean tells a slide's PSNR to some tenths of a dB
QUALITIES = (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
SHARE = 0.95


@dataclass(frozen=True)
class CurvePoint:
    """At one quality: the PSNR of all sampled chunks together and of the worst, in dB, and bits per pixel of tissue."""

    quality: int
    psnr: float
    worst_psnr: float
    bpp: float


@dataclass(frozen=True)
class Curve:
    """What was seen of one slide, by rising quality."""

    source: str
    labels: Mapping[str, str]
    chunks: int
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class Proposal:
    """The lowest quality with which the wanted share of these slides has the wanted fidelity; None where none has.
    `labels` are what the slides share; `bpp` is the mean at that quality, in bits per pixel of tissue."""

    labels: Mapping[str, str]
    slides: int
    quality: int | None
    bpp: float | None


@dataclass(frozen=True)
class TuneReport:
    """Proposals for groups of slides, the curves they come from, the slides that could not be used, and the lines of a
    policy that say the same."""

    proposals: tuple[Proposal, ...]
    curves: tuple[Curve, ...]
    left_out: tuple[str, ...]
    policy: str


def tune(
    sources: Sequence[str | Path],
    *,
    wanted_psnr: float | None = None,
    wanted_worst: float | None = None,
    by: Sequence[str] = (),
    slides: int = SLIDES,
    share: float = SHARE,
    model: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TuneReport:
    """Proposes a quality with which `share` of the slides has `wanted_psnr`, or has it in its worst sampled chunk
    (`wanted_worst`); with both, has both. `by` are labels of the manifest: each of their values gets its own proposal,
    from `slides` slides of its own. Raises UsageError where no slide can be used, and what `find_slides` raises."""
    if wanted_psnr is None and wanted_worst is None:
        raise UsageError("nothing is wanted: give --psnr, --worst, or both")
    found = list(find_slides(sources))
    groups: dict[tuple[tuple[str, str], ...], list[Found]] = {}
    for item in found:
        missing = [name for name in by if name not in item.labels]
        if missing:
            raise UsageError(f"{item.source}: has no label {missing[0]!r}; --by takes columns of a manifest")
        groups.setdefault(tuple((name, item.labels[name]) for name in by), []).append(item)
    chosen = [(labels, item) for labels, items in sorted(groups.items()) for item in spread(items, slides)]
    if not chosen:
        raise UsageError("no slides were found")
    options = EncodeOptions(quality=DEFAULT_QUALITY, effort=0, device=device, model=model or DEFAULT_MODEL)
    curves: list[Curve] = []
    left_out, by_group = [], {labels: list[Curve]() for labels in groups}
    for done, (labels, item) in enumerate(chosen, 1):
        try:
            curve = measured(item, options, workers)
            curves.append(curve)
            by_group[labels].append(curve)
        except HistocodecError as exc:
            left_out.append(str(exc))
        if progress is not None:
            progress(done, len(chosen))
    if not curves:
        raise UsageError(f"no slide could be used: {left_out[0]}")
    proposals = tuple(
        _proposal(dict(labels), seen, wanted_psnr, wanted_worst, share)
        for labels, seen in sorted(by_group.items())
        if seen
    )
    return TuneReport(proposals, tuple(curves), tuple(left_out), policy_lines(proposals))


def measured(found: Found, options: EncodeOptions, workers: int | None = None) -> Curve:
    """What a sample of a slide's tissue is at every quality. Raises UsageError where it has no tissue, SourceError and
    UnsupportedError."""
    from histocodec.codec.chunk import fast_chunk_codec
    from histocodec.codec.transform import Transform
    from histocodec.codec.window import read_window
    from histocodec.device import choose_device
    from histocodec.formats.encode.plan import make_plan
    from histocodec.models.weights import find_model

    if found.problem is not None:
        raise found.problem
    weights = find_model(options.model)
    with closing(Workers(workers)) as pool, local_copy(found.source, found.parts) as path, open_slide(path) as slide:
        transform = pool.run(lambda: Transform(weights, choose_device(options.device)))
        codec = pool.run(lambda: fast_chunk_codec(weights))
        plan = make_plan(slide, (0,), options, transform, codec, pool, len(slide.levels))
        quantiser = plan.quantiser(transform, codec).without_search()
        keys = spread([chunk.key for chunk in sampled_chunks(plan.scope) if not chunk.blank], CHUNKS)
        if not keys:
            raise UsageError(f"{found.source}: shows no tissue")

        def chunk(number: int) -> list[tuple[float, int, int]]:
            """Squared error, values and bytes at every quality."""
            region = plan.scope.region(keys[number])
            window = read_window(slide, 0, region, transform, plan.stats)
            height, width, _ = window.pixels.shape
            figures: list[tuple[float, int, int]] = []
            for quality in QUALITIES:
                data = quantiser.encode(window, quality, weights.config.chunk, np.dtype(np.int16))
                y = quantiser.latents(window, quality, np.dtype(np.int16))
                scaled = (y * weights.inverse_gain(quality)[:, None, None]).astype(np.float32)
                decoded = transform.synthesise([scaled], window.margin, plan.stats)[0]
                error = squared_error(decoded[:height, :width], window.pixels)
                figures.append((error, window.pixels.size, len(data) + CRC_BYTES))
            return figures

        chunks = list(pool.map(chunk, range(len(keys))))
    points = []
    for number, quality in enumerate(QUALITIES):
        column = [figures[number] for figures in chunks]
        error, values, size = (sum(figures[part] for figures in column) for part in range(3))
        worst = min(psnr(own, count) for own, count, _ in column)
        points.append(CurvePoint(quality, psnr(error, int(values)), worst, 8 * size / (values / 3)))
    return Curve(found.source, dict(found.labels), len(keys), tuple(points))


def lowest_quality(curve: Curve, wanted_psnr: float | None, wanted_worst: float | None) -> float:
    """The lowest quality, between those that were tried, with which a slide has what is wanted; infinite where none
    has."""
    needed = 0.0
    for wanted, heights in (
        (wanted_psnr, [point.psnr for point in curve.points]),
        (wanted_worst, [point.worst_psnr for point in curve.points]),
    ):
        if wanted is None:
            continue
        heights = list(np.maximum.accumulate(heights))
        if heights[-1] < wanted:
            return math.inf
        if heights[0] < wanted:
            needed = max(needed, float(np.interp(wanted, heights, QUALITIES)))
    return needed


def _proposal(
    labels: Mapping[str, str],
    curves: Sequence[Curve],
    wanted_psnr: float | None,
    wanted_worst: float | None,
    share: float,
) -> Proposal:
    needed = sorted(lowest_quality(curve, wanted_psnr, wanted_worst) for curve in curves)
    quality = needed[min(len(needed) - 1, math.ceil(share * len(needed)) - 1)]
    if math.isinf(quality):
        return Proposal(labels, len(curves), None, None)
    whole = math.ceil(quality)
    rates = [np.interp(whole, QUALITIES, [point.bpp for point in curve.points]) for curve in curves]
    return Proposal(labels, len(curves), whole, float(np.mean(rates)))


def policy_lines(proposals: Sequence[Proposal]) -> str:
    """The lines of a policy file that say what is proposed."""
    lines = []
    for proposal in proposals:
        if proposal.labels:
            when = ", ".join(f"{_key(name)} = {_text(value)}" for name, value in proposal.labels.items())
            lines += ["[[rule]]", f"when = {{ {when} }}"]
        else:
            lines.append("[encode]")
        if proposal.quality is None:
            lines += ["# no quality reaches what is wanted on enough of these slides; min_psnr guarantees it", ""]
        else:
            lines += [f"quality = {proposal.quality}", ""]
    return "\n".join(lines)


def _key(name: str) -> str:
    return name if name.isascii() and name.replace("_", "").replace("-", "").isalnum() else _text(name)


def _text(value: str) -> str:
    """A text as TOML has it, in which `*` and `?` are meant as they are."""
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\u{ord(c):04x}" for c in value)
    return f'"{escaped}"'
