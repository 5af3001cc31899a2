"""A plan: the slides that were found, what is known of each, how it is to be encoded, and its container's name."""

import io
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from histocodec.errors import HistocodecError, UsageError
from histocodec.formats.cohort.find import Found, find_slides
from histocodec.formats.cohort.ledger import Ledger, Row
from histocodec.formats.cohort.policy import Policy, merged
from histocodec.formats.cohort.remote_file import RemoteFile
from histocodec.formats.container.locations import is_url
from histocodec.formats.encode.journal import creation_time
from histocodec.sources import open_slide
from histocodec.sources.files import slide_bytes
from histocodec.version import VERSION

LOOKING = 8  # slides that are opened at a time: most of it is waiting for a share
LEDGER_NAME = "cohort.sqlite"
FACTS = ("vendor", "mpp", "power")  # labels that slides have by themselves, where a manifest gives no other value
SEVERAL = 5  # names in a message


@dataclass(frozen=True)
class Problem:
    """A slide that cannot be opened, and why."""

    source: str
    error: str


@dataclass(frozen=True)
class PlanReport:
    """What a plan added to a ledger. `known` slides were in it before. `pixels` are those of level 0, in all slides
    whose size could be read, and `source_bytes` those of their files."""

    ledger: str
    out: str
    added: int
    known: int
    unreadable: tuple[Problem, ...]
    pixels: int
    source_bytes: int
    options: tuple[tuple[str, int], ...] = field(default=())  # how many slides have which, the most frequent first
    seconds: float = 0


def make_plan(
    sources: Sequence[str | Path],
    out: str,
    ledger: Path,
    policy: Policy,
    *,
    options: Mapping[str, object] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PlanReport:
    """Finds slides, looks into each, and writes those that are new into a ledger, which is made if there is none.

    `out` is the folder or URL where the containers go; `options` have the last word over the policy's. A slide that
    cannot be opened is written as failed, and looked at again by the next plan. Raises UsageError where two slides
    would have one container, a rule asks for a label that no slide has, or the ledger is of another folder; then
    nothing is written. Raises also what `find_slides` raises.
    """
    began, created = time.perf_counter(), creation_time()
    out = out.rstrip("/") if is_url(out) else str(Path(out).absolute())
    found = list(find_slides(sources))
    if not found:
        raise UsageError(f"{', '.join(map(str, sources))}: no slides were found")
    facts = {"out": out, "version": VERSION, "created": str(created)}
    existing = ledger.exists()
    rows, results, failed = [], {}, {}
    if existing:
        with closing(Ledger.open(ledger)) as opened:
            _check_same_folder(opened, out)
            results = opened.sources()
            failed = {row.source: row.number for row in opened.rows(states=("failed",)) if row.attempts == 0}
    new = [item for item in found if item.source not in results or item.source in failed]
    taken = {_comparable(result): source for source, result in results.items() if source not in failed}
    with ThreadPoolExecutor(LOOKING) as pool:
        for done, row in enumerate(pool.map(_looked_at, new), 1):
            rows.append(row)
            if progress is not None:
                progress(done, len(new))
    _check_labels(policy, rows)
    planned = []
    for item, row in zip(new, rows, strict=True):
        result = f"{out}/{policy.name_of(item.name, row.labels)}"
        _check_free(result, item.source, taken)
        chosen = merged(policy.options_of(row.labels), options or {})
        planned.append(replace(row, result=result, options=chosen, created=created))
    with closing(Ledger.open(ledger) if existing else Ledger.make(ledger, facts)) as opened:
        opened.forget(failed[item.source] for item in new if item.source in failed)
        opened.add(planned)
    return PlanReport(
        ledger=str(ledger),
        out=out,
        added=sum(row.state == "planned" for row in planned),
        known=len(found) - len(new),
        unreadable=tuple(Problem(row.source, row.error or "") for row in planned if row.state == "failed"),
        pixels=sum(row.width * row.height for row in planned if row.width and row.height),
        source_bytes=sum(row.source_bytes or 0 for row in planned),
        options=_frequencies(row.options for row in planned if row.state == "planned"),
        seconds=time.perf_counter() - began,
    )


def _looked_at(found: Found) -> Row:
    """A row with what is known of a slide, whose result and options are still to be found."""
    row = Row(0, found.source, "", {}, 0, labels=dict(found.labels), parts=found.parts, source_bytes=found.bytes)
    try:
        if found.problem is not None:
            raise found.problem
        return _remote_facts(row) if is_url(found.source) else _local_facts(row)
    except HistocodecError as exc:
        return replace(row, state="failed", error_kind=type(exc).__name__, error=str(exc))
    except Exception as exc:  # what a library raises of one slide must not end the plan of thousands
        return replace(row, state="failed", error_kind=type(exc).__name__, error=f"{found.source}: {exc}")


def _local_facts(row: Row) -> Row:
    with open_slide(row.source) as slide:
        mpp = slide.mpp
        vendor = slide.properties.get("openslide.vendor")
        facts = {
            "vendor": vendor,
            "mpp": None if mpp is None else f"{mpp[0]:.4g}",
            "power": None if slide.objective_power is None else f"{slide.objective_power:g}",
        }
        return replace(
            row,
            labels={name: value for name, value in facts.items() if value} | dict(row.labels),
            vendor=vendor,
            width=slide.levels[0].width,
            height=slide.levels[0].height,
            levels=len(slide.levels),
            mpp_x=None if mpp is None else mpp[0],
            mpp_y=None if mpp is None else mpp[1],
            source_bytes=slide_bytes(Path(row.source)),
        )


def _remote_facts(row: Row) -> Row:
    """The size and the levels of a slide that tifffile can look into from afar; of another, nothing until it is
    encoded."""
    from tifffile import TiffFile

    try:
        with TiffFile(io.BufferedReader(RemoteFile(row.source))) as file:
            levels = file.series[0].levels
            page = levels[0].keyframe
            return replace(row, width=page.imagewidth, height=page.imagelength, levels=len(levels))
    except HistocodecError:
        raise
    except Exception:  # no TIFF; tifffile raises many kinds
        return row


def _check_same_folder(ledger: Ledger, out: str) -> None:
    planned = ledger.facts().get("out")
    if planned != out:
        raise UsageError(
            f"{ledger.path}: is the ledger of {planned}; for containers in {out}, give another one (--ledger)"
        )


def _check_labels(policy: Policy, rows: Iterable[Row]) -> None:
    known = {name for row in rows for name in row.labels}
    missing = sorted(policy.label_names() - known - set(FACTS))
    if missing and known:
        raise UsageError(
            f"the policy asks for the label {missing[0]!r}, which no slide has; they have {', '.join(sorted(known))}"
        )
    if missing:
        raise UsageError(f"the policy asks for the label {missing[0]!r}, but no slide has any; a manifest gives them")


def _check_free(result: str, source: str, taken: dict[str, str]) -> None:
    other = taken.setdefault(_comparable(result), source)
    if other != source:
        raise UsageError(
            f"{source} and {other} would have the same container, {result}; give a policy whose [names] pattern tells "
            'them apart, such as "{folder}/{stem}.hcz" or one with labels of a manifest'
        )


def _comparable(result: str) -> str:
    """A name as file systems compare them that know no case."""
    return unicodedata.normalize("NFC", result).casefold()


def _frequencies(options: Iterable[Mapping[str, object]]) -> tuple[tuple[str, int], ...]:
    counts: dict[str, int] = {}
    for chosen in options:
        words = ", ".join(f"{name} = {value}" for name, value in chosen.items()) or "the defaults"
        counts[words] = counts.get(words, 0) + 1
    return tuple(sorted(counts.items(), key=lambda item: -item[1]))
