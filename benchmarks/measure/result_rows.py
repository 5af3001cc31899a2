"""The rows of a benchmark, each one image coded once, and their forms: flat JSON objects and CSV."""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from histocodec.benchmarks.measure.images import Subject
from histocodec.benchmarks.measure.metrics import Fidelity
from histocodec.benchmarks.measure.nuclei import NucleiAgreement
from histocodec.text import jsonable

OURS = "histocodec"
CURVE = "curve"  # a point of the rate-distortion curve, as opposed to one of the paper's ratios

Count = Literal["bytes", "in_slide_bytes", "container_bytes"]
COUNTS: tuple[Count, ...] = get_args(Count)
HEADLINE: Count = "in_slide_bytes"


@dataclass(frozen=True)
class CodecVersion:
    """What coded an image. A row can be used again as long as all of this is the same."""

    codec: str  # "histocodec", or a peer's name on the command line
    name: str  # in full
    version: str
    model_sha256: str | None  # None: a peer
    device: str
    tool: str  # the version of this package, which decodes, counts and compares


@dataclass(frozen=True)
class Point:
    """Where on its curve a row lies. The last four describe a peer's whole curve: between which PSNRs in dB it was
    sought, in how many steps, and how many points it has."""

    kind: str  # "curve", or a ratio as 1:64
    setting: float  # the codec's own: a quality, or a peer's setting
    from_psnr: float | None = None
    to_psnr: float | None = None
    steps: int | None = None
    points: int | None = None


@dataclass(frozen=True)
class Sizes:
    """Three counts of our own bytes, because they answer different questions. A peer's are all its whole codestream."""

    bytes: int  # shards of latents with their index, and the statistics: what reading the pixels needs
    in_slide_bytes: int  # coded chunks with their checksums and index entries: what they cost in a large slide
    container_bytes: int  # every file of the container, with its metadata, maps and checksums


@dataclass(frozen=True)
class Speed:
    """Megapixels a second, and peak memory beyond what the process held, each measured once, warm."""

    timed_on: str  # the machine, and how many threads "all" are
    encode_mps_1: float
    decode_mps_1: float
    encode_mps_all: float
    decode_mps_all: float
    encode_peak_bytes: int | None  # with all threads
    decode_peak_bytes: int | None


@dataclass(frozen=True)
class Row:
    """One image, coded once, and what that cost and kept."""

    subject: Subject
    coded_by: CodecVersion
    point: Point
    sizes: Sizes
    bpp: float  # bits per pixel, of in_slide_bytes
    fidelity: Fidelity
    nuclei: NucleiAgreement
    speed: Speed | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """Equal in rows about the same thing."""
        return row_key(self.subject, self.coded_by, self.point)

    @property
    def is_ours(self) -> bool:
        """Whether histocodec coded it, not a peer."""
        return self.coded_by.codec == OURS

    def metric(self, name: str) -> float:
        """A value of fidelity or of nuclei, by the name of its column."""
        field = name.removeprefix("nuclei_")
        value: float = getattr(self.fidelity if field == name else self.nuclei, field)
        return value


def row_key(subject: Subject, coded_by: CodecVersion, point: Point) -> tuple[object, ...]:
    """What a row is about. The setting that meets a ratio has to be searched for, so it is no part of the key."""
    return subject, coded_by, point.kind, point.setting if point.kind == CURVE else None


# The parts of a row, in the order of the columns: attribute, type, and what the names of its columns begin with.
_PARTS = (
    ("subject", Subject, ""),
    ("coded_by", CodecVersion, ""),
    ("point", Point, ""),
    ("sizes", Sizes, ""),
    ("fidelity", Fidelity, ""),
    ("nuclei", NucleiAgreement, "nuclei_"),
    ("speed", Speed, ""),
)
COLUMNS = tuple(
    name
    for part, kind, prefix in _PARTS
    for name in (*(("bpp",) if part == "fidelity" else ()), *(f"{prefix}{field.name}" for field in fields(kind)))
)


def flat(row: Row) -> dict[str, object]:
    """Every field of a row by the name of its column, in JSON's types. An infinite PSNR (lossless) is null."""
    values: dict[str, object] = {"bpp": row.bpp}
    for part, kind, prefix in _PARTS:
        value = getattr(row, part)
        by_name = dict.fromkeys(field.name for field in fields(kind)) if value is None else asdict(value)
        values |= {f"{prefix}{name}": jsonable(field) for name, field in by_name.items()}
    return {name: values[name] for name in COLUMNS}


def from_flat(values: Mapping[str, Any]) -> Row:  # JSON
    """Restore the row that `flat` took apart. Raises KeyError or TypeError where the values are not those of a row."""
    parts: dict[str, Any] = {}
    for part, kind, prefix in _PARTS:
        by_name = {field.name: values[f"{prefix}{field.name}"] for field in fields(kind)}
        if kind is Fidelity:
            by_name = {name: math.inf if value is None else value for name, value in by_name.items()}
        parts[part] = None if kind is Speed and by_name["timed_on"] is None else kind(**by_name)
    return Row(bpp=values["bpp"], **parts)


def as_csv(rows: Iterable[Row]) -> str:
    """The rows as CSV, with the same columns and values as in JSON; null is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat(row) for row in rows)
    return text.getvalue()


def from_csv(text: str) -> list[Row]:
    """Restore the rows that `as_csv` wrote. Raises KeyError, TypeError or ValueError where the text is not theirs."""
    types: dict[str, type] = {"bpp": float}
    for _, kind, prefix in _PARTS:
        types |= {f"{prefix}{name}": _plain_type(hint) for name, hint in get_type_hints(kind).items()}
    return [
        from_flat({name: types[name](value) if value else None for name, value in line.items()})
        for line in csv.DictReader(io.StringIO(text))
    ]


def _plain_type(hint: Any) -> type:  # a type, or a type that may be None
    plain: type = next((kind for kind in get_args(hint) if kind is not type(None)), hint)
    return plain
