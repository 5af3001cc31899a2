"""The rows of a benchmark: one image, coded once; and the file that keeps them as they are finished.

`rows.jsonl` has one flat JSON object a line. It is only ever added to: of two lines about the same thing the later
one counts, and lines that a present run would not write (another model, version or image) are passed over.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from histocodec.benchmarks.measure.images import Subject
from histocodec.benchmarks.measure.metrics import Fidelity
from histocodec.benchmarks.measure.nuclei import NucleiAgreement
from histocodec.errors import FormatError, OutputError
from histocodec.text import jsonable

OURS = "histocodec"
CURVE = "curve"  # a point of the rate-distortion curve, as opposed to one of the paper's ratios

Count = Literal["bytes", "in_slide_bytes", "container_bytes"]
COUNTS: tuple[Count, ...] = get_args(Count)
HEADLINE: Count = "in_slide_bytes"


@dataclass(frozen=True)
class Coder:
    """What coded it. A row serves again as long as all of this is the same."""

    codec: str  # "histocodec", or a peer's name on the command line
    name: str  # in full
    version: str
    model_sha256: str | None  # None: a peer
    device: str
    tool: str  # the version of this package, which decodes, counts and compares


@dataclass(frozen=True)
class Point:
    """Where on its curve. `setting` is the codec's own: a quality, or whatever the peer turns. The rest is a peer's
    curve's: between which PSNRs in dB it was sought, in how many steps, and of how many points it came to be."""

    kind: str  # "curve", or a ratio as 1:64
    setting: float
    from_psnr: float | None = None
    to_psnr: float | None = None
    steps: int | None = None
    points: int | None = None


@dataclass(frozen=True)
class Sizes:
    """Three counts of our own bytes, for they answer different questions; a peer's are all its whole codestream."""

    bytes: int  # shards of latents with their index, and the statistics: what reading the pixels needs
    in_slide_bytes: int  # coded chunks with their checksums and index entries: what they cost in a large slide
    container_bytes: int  # every file of the container, its metadata, maps and checksums included


@dataclass(frozen=True)
class Speed:
    """Megapixels a second and peak memory beyond what the process held, each measured once, warm."""

    timed_on: str  # the machine, and what "all" threads are
    encode_mps_1: float
    decode_mps_1: float
    encode_mps_all: float
    decode_mps_all: float
    encode_peak_bytes: int | None  # with all threads
    decode_peak_bytes: int | None


@dataclass(frozen=True)
class Row:
    subject: Subject
    coder: Coder
    point: Point
    sizes: Sizes
    bpp: float  # of in_slide_bytes
    fidelity: Fidelity
    nuclei: NucleiAgreement
    speed: Speed | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """Equal in rows about the same thing."""
        return self.subject, self.coder, self.point.kind, _setting_in_key(self.point)

    @property
    def is_ours(self) -> bool:
        return self.coder.codec == OURS

    def metric(self, name: str) -> float:
        """A figure of fidelity, or of nuclei, by its column's name."""
        own = name.removeprefix("nuclei_")
        value: float = getattr(self.fidelity if own == name else self.nuclei, own)
        return value


_PARTS = (
    ("subject", Subject, ""),
    ("coder", Coder, ""),
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
    """Every field under a name of its own, in JSON's types; a lossless row has no finite PSNR, and null there."""
    found: dict[str, object] = {"bpp": row.bpp}
    for part, kind, prefix in _PARTS:
        value = getattr(row, part)
        values = dict.fromkeys(field.name for field in fields(kind)) if value is None else asdict(value)
        found |= {f"{prefix}{name}": jsonable(one) for name, one in values.items()}
    return {name: found[name] for name in COLUMNS}


def from_flat(found: dict[str, Any]) -> Row:  # JSON
    """The row that `flat` made this of. Raises KeyError or TypeError where it is none."""
    parts: dict[str, Any] = {}
    for part, kind, prefix in _PARTS:
        values = {field.name: found[f"{prefix}{field.name}"] for field in fields(kind)}
        if kind is Fidelity:
            values = {name: math.inf if one is None else one for name, one in values.items()}
        parts[part] = None if kind is Speed and values["timed_on"] is None else kind(**values)
    return Row(bpp=found["bpp"], **parts)


def as_csv(rows: Iterable[Row]) -> str:
    """The same columns and values as in JSON; null is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat(row) for row in rows)
    return text.getvalue()


class RowStore:
    """All rows so far, by key; with a path, those of earlier runs too, and every new one is on the disk at once."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._rows: dict[tuple[object, ...], Row] = {}
        for row in () if path is None else _stored(path):
            self._rows[row.key] = row

    def curve(self, subject: Subject, coder: Coder) -> list[Row]:
        """The points of a curve, by setting."""
        found = [
            row
            for row in self._rows.values()
            if row.point.kind == CURVE and row.subject == subject and row.coder == coder
        ]
        return sorted(found, key=lambda row: row.point.setting)

    def at(self, subject: Subject, coder: Coder, point: Point) -> Row | None:
        """The finished row of a point of the curve, by its setting, or of a ratio, whatever its setting."""
        return self._rows.get((subject, coder, point.kind, _setting_in_key(point)))

    def add(self, row: Row) -> None:
        self._rows[row.key] = row
        if self._path is None:
            return
        line = json.dumps(flat(row), ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab", buffering=0) as file:
                file.write(line.encode())  # one write: a signal leaves the whole line, or none of it
                os.fsync(file.fileno())
        except OSError as exc:
            raise OutputError(f"{self._path}: cannot be written: {exc.strerror or exc}") from exc


def _setting_in_key(point: Point) -> float | None:
    """What reaches a ratio has to be sought, so that it cannot be told before."""
    return point.setting if point.kind == CURVE else None


def _stored(path: Path) -> Sequence[Row]:
    """What an earlier run left. A last line that was cut short goes; rows of another shape are passed over."""
    try:
        if not path.exists():
            return ()
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
    except OSError as exc:
        raise OutputError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    rows = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            rows.append(from_flat(json.loads(line)))
        except ValueError as exc:
            raise FormatError(f"{path}: line {number} is no JSON: {exc}") from exc
        except (KeyError, TypeError):
            continue
    return rows
