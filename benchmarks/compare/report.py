"""The report: one page of Markdown with tables and plots, and the table of it that a terminal shows."""

from collections.abc import Iterator, Sequence

from histocodec.benchmarks.compare.bench_result import BenchResult
from histocodec.benchmarks.compare.fixed_ratios import Rung
from histocodec.benchmarks.compare.image_groups import Mean
from histocodec.benchmarks.compare.rate_comparison import ALL_BANDS, BANDS, METRICS, GroupComparison, Loss
from histocodec.benchmarks.compare.summary import SHOWN, AtRate, Speeds
from histocodec.benchmarks.measure.result_rows import COUNTS, HEADLINE, Count
from histocodec.benchmarks.studies.speed import speed_lines
from histocodec.text import size_text

CROPS = "crops.png"
WIDEST = "0.05-1.5"
COUNT_NAMES: dict[Count, str] = {
    "bytes": "latents, their index and statistics",
    "in_slide_bytes": "chunks, as within a large slide",
    "container_bytes": "every file of the container",
}


def report(result: BenchResult, *, plots: Sequence[str], crops: bool) -> str:
    """Markdown; `plots` are files beside it."""
    summary, machine = result.summary, result.machine
    images = {(row.subject.image, row.subject.variant) for row in result.rows}
    parts = [
        "# Benchmark",
        f"{len(images)} images, {len(result.rows)} rows. Model {result.model.id} "
        f"(`{result.model.sha256[:12]}`){_effort(result)}; {machine.cpu}, {machine.cores} cores, "
        f"{machine.gpu or 'no GPU'}, {machine.system}.",
        "Versions: " + "; ".join(f"{name} {version}" for name, version in result.versions.items()) + ".",
        "Bjøntegaard rate difference of ours against each peer: how many per cent more bytes (negative: fewer) for "
        "the same quality, per image over what both reach, then the mean over the images [or so many of them, where "
        "not all have a value]. A band is one of the peer's bits per pixel. Our bytes are those of coded chunks with "
        "checksums and index entries.",
    ]
    for metric, name in METRICS.items():
        parts += [f"## Bytes at equal {name}", _bd_table(summary.groups, metric)]
    parts += ["## Where we lose", *_losses(summary.losses)]
    if summary.not_monotone:
        parts.append(f"A higher quality is not always larger and better on: {'; '.join(summary.not_monotone)}.")
    parts += ["## Three counts of our bytes", _count_table(summary.groups)]
    if summary.ratios:
        parts += [
            "## The paper's ratios",
            "Ours and whole-image JPEG 2000, neither with more bytes than raw RGB over the ratio; means over the "
            "images where both can be so small.",
            _ratio_table(summary.ratios),
        ]
    if summary.at_rates:
        parts += ["## Every metric at three rates", _rate_table(summary.at_rates)]
    if summary.speeds:
        parts += [
            "## Speed on these images",
            "Medians, in megapixels a second, over single measurements on images that may be small; memory beyond what "
            f"the process held, the most of any. All threads: {result.options.threads}. Our encoding is timed until "
            "the last chunk is coded; `encode` then decodes and compares everything, too.",
            _speed_table(summary.speeds),
        ]
    if result.speed is not None:
        parts += ["## Speed on a slide", "```\n" + "\n".join(speed_lines(result.speed)) + "\n```"]
    if plots:
        parts += ["## Rate and distortion", *(f"![{name}]({name})" for name in plots)]
    if crops:
        parts += ["## The same bytes", f"![crops, original first]({CROPS})"]
    return "\n\n".join(parts) + "\n"


def headline(result: BenchResult) -> Iterator[str]:
    """For a terminal: the rate differences at equal PSNR, and the images on which we lose."""
    yield f"model {result.model.id} ({result.model.sha256[:12]}){_effort(result)}"
    yield "bytes at equal PSNR against the peer's, means over the images [or so many of them]"
    for title in dict.fromkeys(_title(one.group, one.variant) for one in result.summary.groups):
        own = [one for one in result.summary.groups if _title(one.group, one.variant) == title]
        yield ""
        yield f"{f'{title} ({own[0].images})':<30}" + "".join(f"{band:>14}" for band in ALL_BANDS)
        for one in own:
            cells = [_cell(one.bd_rate["psnr"][HEADLINE][band], one.images) for band in ALL_BANDS]
            yield f"  {one.peer:<28}" + "".join(f"{cell:>14}" for cell in cells)
    yield ""
    losing = [loss for loss in result.summary.losses if loss.metric == "psnr"]
    yield "we lose on: " + ("no image" if not losing else "")
    for loss in losing:
        yield f"  {_title(loss.image, loss.variant)} against {loss.peer}: {_bands(loss)}"


def _effort(result: BenchResult) -> str:
    return "" if result.options.effort is None else f", effort {result.options.effort:g}"


def _title(name: str, variant: str) -> str:
    return name if variant == "native" else f"{name}, {variant}"


def _bd_table(groups: Sequence[GroupComparison], metric: str) -> str:
    rows = [
        (
            _title(one.group, one.variant),
            one.peer,
            *(_cell(one.bd_rate[metric][HEADLINE][band], one.images) for band in ALL_BANDS),
        )
        for one in groups
    ]
    return _table(("images", "against", *(f"{band} bpp" for band in BANDS), "everything"), rows)


def _count_table(groups: Sequence[GroupComparison]) -> str:
    rows = [
        (
            _title(one.group, one.variant),
            one.peer,
            *(_cell(one.bd_rate["psnr"][count][WIDEST], one.images) for count in COUNTS),
        )
        for one in groups
    ]
    return f"At equal PSNR, {WIDEST} bpp.\n\n" + _table(("images", "against", *COUNT_NAMES.values()), rows)


def _losses(losses: Sequence[Loss]) -> list[str]:
    """Every image by name."""
    if not losses:
        return ["On no image in any band."]
    rows = [(_title(one.image, one.variant), one.peer, METRICS[one.metric], _bands(one)) for one in losses]
    return [_table(("image", "against", "at equal", "more bytes"), rows)]


def _bands(loss: Loss) -> str:
    return ", ".join(f"{band}: {value:+.1f} %" for band, value in loss.percent.items())


def _ratio_table(rungs: Sequence[Rung]) -> str:
    rows = []
    for one in rungs:
        cells = [_pair(one.ours, one.theirs, name, digits) for name, digits in (("psnr", 2), ("ms_ssim_db", 2))]
        f1 = _pair(one.ours, one.theirs, "nuclei_f1", 3)
        images = f"{one.images} of {one.of}"
        rows.append((_title(one.group, one.variant), f"1:{one.ratio}", f"{one.bpp:.3f}", images, *cells, f1))
    heading = ("images", "ratio", "bpp", "measured", "PSNR, ours / JPEG 2000", "MS-SSIM, dB", "nuclei, F1")
    return _table(heading, rows)


def _pair(ours: dict[str, float] | object, theirs: dict[str, float] | object, name: str, digits: int) -> str:
    if not (isinstance(ours, dict) and isinstance(theirs, dict) and ours and theirs):
        return "-"
    return f"{ours[name]:.{digits}f} / {theirs[name]:.{digits}f}"


def _rate_table(found: Sequence[AtRate]) -> str:
    rows = [
        (
            _title(one.group, one.variant),
            f"{one.bpp:g}",
            one.codec + ("" if one.images == one.of else f" [{one.images}]"),
            *(f"{one.values[name]:.{2 if 'dB' in title else 3}f}" for name, title in SHOWN.items()),
        )
        for one in found
    ]
    return _table(("images", "bpp", "codec", *SHOWN.values()), rows)


def _speed_table(found: Sequence[Speeds]) -> str:
    rows = []
    for one in found:
        speeds = (one.encode_mps_1, one.encode_mps_all, one.decode_mps_1, one.decode_mps_all)
        memory = ("-" if peak is None else size_text(peak) for peak in (one.encode_peak_bytes, one.decode_peak_bytes))
        rows.append((_title(one.codec, one.variant), *(f"{speed:.2f}" for speed in speeds), *memory, f"{one.rows}"))
    heading = ("codec", "encode, 1 thread", "all", "decode, 1 thread", "all", "encoding takes", "decoding", "timed")
    return _table(heading, rows)


def _cell(mean: Mean | None, images: int) -> str:
    if mean is None:
        return "-"
    return f"{mean.value:+.1f} %" + ("" if mean.images == images else f" [{mean.images}]")


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
