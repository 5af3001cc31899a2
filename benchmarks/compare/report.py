"""The report: one page of Markdown with tables and plots, and the table of it that a terminal shows."""

from collections.abc import Iterator, Mapping, Sequence

from histocodec.benchmarks.compare.bench_result import BenchResult
from histocodec.benchmarks.compare.fixed_ratios import AtRatio
from histocodec.benchmarks.compare.image_groups import Mean
from histocodec.benchmarks.compare.rate_comparison import ALL_BANDS, BANDS, METRICS, GroupComparison, Loss
from histocodec.benchmarks.compare.summary import SHOWN, AtRate, Speeds, Summary
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
    """Write the report in Markdown. `plots` are names of files beside it; so is CROPS, with `crops`."""
    summary, machine = result.summary, result.machine
    images = {(row.subject.image, row.subject.variant) for row in result.rows}
    parts = [
        "# Benchmark",
        f"{len(images)} images, {len(result.rows)} rows. Model {result.model.id} "
        f"(`{result.model.sha256[:12]}`){_effort(result)}; {machine.cpu}, {machine.cores} cores, "
        f"{machine.gpu or 'no GPU'}, {machine.system}.",
        "Versions: " + "; ".join(f"{name} {version}" for name, version in result.versions.items()) + ".",
        *rate_sections(summary),
        "## Where we lose",
        *_losses(summary.losses),
    ]
    if summary.not_monotone:
        parts.append(f"A higher quality is not always larger and better on: {'; '.join(summary.not_monotone)}.")
    parts += ["## Three counts of our bytes", _count_table(summary.groups), *ratio_section(summary)]
    if summary.at_rates:
        parts += ["## Every metric at three rates", _rate_table(summary.at_rates)]
    if summary.speeds:
        parts += [
            "## Speed on these images",
            "Medians, in megapixels a second, of single measurements on images that may be small. Memory is what a "
            f"codec takes beyond what the process held, the most of any image. All threads: {result.options.threads}. "
            "Our encoding is timed until the last chunk is coded; `encode` then also decodes and compares everything.",
            _speed_table(summary.speeds),
        ]
    if result.speed is not None:
        parts += ["## Speed on a slide", "```\n" + "\n".join(speed_lines(result.speed)) + "\n```"]
    if plots:
        parts += ["## Rate and distortion", *(f"![{name}]({name})" for name in plots)]
    if crops:
        parts += ["## The same bytes", f"![crops, original first]({CROPS})"]
    return "\n\n".join(parts) + "\n"


def rate_sections(summary: Summary) -> list[str]:
    """The sections on rate differences: how to read them, and a table per metric."""
    parts = [
        "Rates are Bjøntegaard rate differences: how many per cent more bytes (negative: fewer) we need than the peer "
        "for the same quality, per image over the qualities that both reach, then the mean over the images; in square "
        "brackets the number of images, where not all have a value. A band is a range of the peer's bits per pixel. "
        "Our bytes are those of coded chunks with their checksums and index entries.",
    ]
    for metric, name in METRICS.items():
        parts += [f"## Bytes at equal {name}", _bd_table(summary.groups, metric)]
    return parts


def ratio_section(summary: Summary) -> list[str]:
    """The section on the paper's ratios; nothing where none was measured."""
    if not summary.ratios:
        return []
    return [
        "## The paper's ratios",
        "Ours and whole-image JPEG 2000, each with at most the bytes of raw RGB over the ratio; means over the images "
        "on which both can be so small.",
        _ratio_table(summary.ratios),
    ]


def headline(result: BenchResult) -> Iterator[str]:
    """The lines for a terminal: rate differences at equal PSNR, and the images on which we lose."""
    yield f"model {result.model.id} ({result.model.sha256[:12]}){_effort(result)}"
    yield "bytes at equal PSNR against each peer, means over the images [or over so many of them]"
    by_title: dict[str, list[GroupComparison]] = {}
    for group in result.summary.groups:
        by_title.setdefault(_title(group.group, group.variant), []).append(group)
    for title, comparisons in by_title.items():
        yield ""
        yield f"{f'{title} ({comparisons[0].images})':<30}" + "".join(f"{band:>14}" for band in ALL_BANDS)
        for comparison in comparisons:
            cells = [_cell(comparison.bd_rate["psnr"][HEADLINE][band], comparison.images) for band in ALL_BANDS]
            yield f"  {comparison.peer:<28}" + "".join(f"{cell:>14}" for cell in cells)
    yield ""
    losses = [loss for loss in result.summary.losses if loss.metric == "psnr"]
    yield "we lose on: " + ("no image" if not losses else "")
    for loss in losses:
        yield f"  {_title(loss.image, loss.variant)} against {loss.peer}: {_bands(loss)}"


def _effort(result: BenchResult) -> str:
    return "" if result.options.effort is None else f", effort {result.options.effort:g}"


def _title(name: str, variant: str) -> str:
    return name if variant == "native" else f"{name}, {variant}"


def _bd_table(groups: Sequence[GroupComparison], metric: str) -> str:
    rows = [
        (
            _title(group.group, group.variant),
            group.peer,
            *(_cell(group.bd_rate[metric][HEADLINE][band], group.images) for band in ALL_BANDS),
        )
        for group in groups
    ]
    return _table(("images", "against", *(f"{band} bpp" for band in BANDS), "everything"), rows)


def _count_table(groups: Sequence[GroupComparison]) -> str:
    rows = [
        (
            _title(group.group, group.variant),
            group.peer,
            *(_cell(group.bd_rate["psnr"][count][WIDEST], group.images) for count in COUNTS),
        )
        for group in groups
    ]
    return f"At equal PSNR, {WIDEST} bpp.\n\n" + _table(("images", "against", *COUNT_NAMES.values()), rows)


def _losses(losses: Sequence[Loss]) -> list[str]:
    """Every image by name."""
    if not losses:
        return ["On no image in any band."]
    rows = [(_title(loss.image, loss.variant), loss.peer, METRICS[loss.metric], _bands(loss)) for loss in losses]
    return [_table(("image", "against", "at equal", "more bytes"), rows)]


def _bands(loss: Loss) -> str:
    return ", ".join(f"{band}: {percent:+.1f} %" for band, percent in loss.percent.items())


def _ratio_table(ratios: Sequence[AtRatio]) -> str:
    rows = [
        (
            _title(at.group, at.variant),
            f"1:{at.ratio}",
            f"{at.bpp:.3f}",
            f"{at.images} of {at.of}",
            _pair(at.ours, at.theirs, "psnr", 2),
            _pair(at.ours, at.theirs, "ms_ssim_db", 2),
            _pair(at.ours, at.theirs, "nuclei_f1", 3),
        )
        for at in ratios
    ]
    heading = ("images", "ratio", "bpp", "measured", "PSNR, ours / JPEG 2000", "MS-SSIM, dB", "nuclei, F1")
    return _table(heading, rows)


def _pair(ours: Mapping[str, float], theirs: Mapping[str, float], name: str, digits: int) -> str:
    if not (ours and theirs):
        return "-"
    return f"{ours[name]:.{digits}f} / {theirs[name]:.{digits}f}"


def _rate_table(at_rates: Sequence[AtRate]) -> str:
    rows = [
        (
            _title(at.group, at.variant),
            f"{at.bpp:g}",
            at.codec + ("" if at.images == at.of else f" [{at.images}]"),
            *(f"{at.values[name]:.{2 if 'dB' in title else 3}f}" for name, title in SHOWN.items()),
        )
        for at in at_rates
    ]
    return _table(("images", "bpp", "codec", *SHOWN.values()), rows)


def _speed_table(codecs: Sequence[Speeds]) -> str:
    rows = []
    for codec in codecs:
        speeds = (codec.encode_mps_1, codec.encode_mps_all, codec.decode_mps_1, codec.decode_mps_all)
        peaks = (codec.encode_peak_bytes, codec.decode_peak_bytes)
        memory = ("-" if peak is None else size_text(peak) for peak in peaks)
        name = _title(codec.codec, codec.variant)
        rows.append((name, *(f"{speed:.2f}" for speed in speeds), *memory, f"{codec.rows}"))
    heading = (
        "codec",
        "encode, 1 thread",
        "encode, all",
        "decode, 1 thread",
        "decode, all",
        "memory, encode",
        "memory, decode",
        "timed rows",
    )
    return _table(heading, rows)


def _cell(mean: Mean | None, images: int) -> str:
    if mean is None:
        return "-"
    return f"{mean.value:+.1f} %" + ("" if mean.images == images else f" [{mean.images}]")


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
