"""Measure every picture: by us at each quality, by each peer over the same range, and at the paper's ratios.

    ours      the qualities
    peers     a curve each, from below our coarsest PSNR to above our finest
    ratios    the paper's, in bytes: ours and JPEG 2000
    timing    of each codec, at the points of its curve that are nearest to three rates

A finished row is stored and used again as long as what made it is the same. A peer's rows do not depend on ours; only
how far its curve must reach does. After a change of our model a peer is measured anew where ours reaches farther.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from histocodec.benchmarks.measure.byte_budget import PARTS, finest_within, raw_bytes_over
from histocodec.benchmarks.measure.images import Picture, Sample, read
from histocodec.benchmarks.measure.metrics import fidelity
from histocodec.benchmarks.measure.nuclei import agreement
from histocodec.benchmarks.measure.our_codec import OurCodec
from histocodec.benchmarks.measure.provenance import Machine
from histocodec.benchmarks.measure.result_rows import CURVE, OURS, CodecVersion, Point, Row, Sizes
from histocodec.benchmarks.measure.row_store import RowStore
from histocodec.benchmarks.measure.timing import jobs_of_ours, jobs_of_peer, nearest, speed_of
from histocodec.benchmarks.peers.codecs import JPEG2000_TILES, PEERS
from histocodec.benchmarks.peers.contender import Contender, code_at_bytes, code_curve
from histocodec.benchmarks.peers.tiles import TILE
from histocodec.device import choose_device
from histocodec.errors import UsageError
from histocodec.formats.encode.options import EncodeOptions
from histocodec.models.config import HyperConfig
from histocodec.models.weights import ModelWeights
from histocodec.slide import Pixels
from histocodec.version import VERSION

BEYOND = 1.0  # dB by which the peers' curves reach beyond ours, so that all of ours is compared, and the next model's
METHOD = 7  # of encoding and measuring; raised when a model would give other figures, so that old rows are not reused
RATIO_PEER = "jpeg2000"  # the paper's


@dataclass(frozen=True)
class BenchOptions:
    """How everything is measured; the samples say what.

    Raises UsageError for an unknown peer or an effort that `encode` refuses: now, not after an hour.
    """

    against: tuple[str, ...]  # peers, by their names on the command line
    qualities: tuple[int, ...]
    ratios: tuple[int, ...]
    steps: int  # points of a peer's curve
    model: str
    device: str
    threads: int  # how many "all" are
    effort: float | None = None
    timing: bool = True

    def __post_init__(self) -> None:
        unknown = [name for name in self.against if name not in PEERS]
        if unknown:
            raise UsageError(f"--against {unknown[0]}: unknown codec; allowed are {', '.join(PEERS)}")
        EncodeOptions(effort=self.effort)


def measure(
    samples: Sequence[Sample],
    options: BenchOptions,
    weights: ModelWeights,
    store: RowStore,
    progress: Callable[[int, int, str], None],
) -> list[Row]:
    """Measure all rows of all samples that the store does not have yet; return all of them.

    `progress` is called with the curves that are finished, how many there are, and what is measured now.
    """
    rows, curves = [], 1 + sum(len(PEERS[name]) for name in options.against)
    for number, sample in enumerate(samples):

        def tell(done: int, text: str, number: int = number, name: str = sample.name) -> None:
            progress(number * curves + done, len(samples) * curves, f"{name}: {text}")

        rows += _PictureRows(read(sample), options, weights, store, tell).measured()
    progress(len(samples) * curves, len(samples) * curves, "")
    return rows


class _PictureRows:
    """The rows of one picture."""

    def __init__(
        self,
        picture: Picture,
        options: BenchOptions,
        weights: ModelWeights,
        store: RowStore,
        tell: Callable[[int, str], None],
    ) -> None:
        self.picture, self.options, self.store, self.tell = picture, options, store, tell
        self.curves_done = 0
        effort = "" if options.effort is None else f" effort {options.effort:g}"
        tool = f"histocodec {VERSION}, method {METHOD}"
        device = str(choose_device(options.device))
        self.ours = CodecVersion(OURS, f"{OURS}{effort}", weights.id, weights.sha256, device, tool)
        self.parts = PARTS if isinstance(weights.config, HyperConfig) else 1
        self.peers = {
            CodecVersion(name, peer.name, peer.version, None, "cpu", tool): peer
            for name in options.against
            for peer in PEERS[name]
            if peer is not JPEG2000_TILES or max(picture.subject.width, picture.subject.height) > TILE
        }

    def measured(self) -> list[Row]:
        """All rows, ours first."""
        ours = [self._our_row(Point(CURVE, quality)) for quality in self.options.qualities]
        psnrs = [row.fidelity.psnr for row in ours if math.isfinite(row.fidelity.psnr)]
        curves = {self.ours: ours}
        for codec, peer in self.peers.items() if psnrs else ():
            self.curves_done += 1
            curves[codec] = self._peer_curve(codec, peer, min(psnrs), max(psnrs))
        at_ratios = list(self._at_ratios(ours))
        if self.options.timing:
            curves = {codec: self._timed(codec, rows) for codec, rows in curves.items()}
        return [row for rows in (*curves.values(), at_ratios) for row in rows]

    def _note(self, text: str) -> None:
        self.tell(self.curves_done, text)

    def _our_row(self, point: Point) -> Row:
        """Our row at the quality of the point."""
        self._note(f"{self.ours.name}, quality {point.setting:g}")
        stored = self.store.at(self.picture.subject, self.ours, point)
        if stored is not None:
            return stored
        with self._our_codec(point.setting) as ours:
            return self._measured(self.ours, point, ours.sizes(ours.prepare()), ours.read())

    def _peer_curve(self, codec: CodecVersion, peer: Contender, low: float, high: float) -> list[Row]:
        """A peer's curve from `low` to `high` dB at least: the stored one if it reaches so far."""
        self._note(codec.name)
        steps, stored = self.options.steps, self.store.curve(self.picture.subject, codec)
        complete = complete_curve(stored, low, high, steps)
        if complete:
            return complete
        low, high = low - BEYOND, high + BEYOND
        images = {
            image.setting: image for image in code_curve(peer, self.picture.pixels, low, high, steps=steps)
        }  # by setting, each once
        rows = []
        for number, (setting, image) in enumerate(images.items(), 1):
            self._note(f"{codec.name}, {number} of {len(images)}")
            point = Point(CURVE, setting, low, high, steps, len(images))
            row = self.store.at(self.picture.subject, codec, point)
            if row is None:
                row = self._measured(codec, point, whole_bytes(image.data), peer.decode(image.data))
            elif row.point != point:  # a point of another, shorter curve
                row = self._stored(replace(row, point=point))
            rows.append(row)
        return rows

    def _at_ratios(self, curve: Sequence[Row]) -> Iterator[Row]:
        """Ours and whole-image JPEG 2000 at each of the ratios."""
        rival = next(((codec, peer) for codec, peer in self.peers.items() if codec.codec == RATIO_PEER), None)
        bytes_by_quality = {row.point.setting: row.sizes.in_slide_bytes for row in curve}
        for ratio in self.options.ratios:
            budget = raw_bytes_over(ratio, self.picture.area)
            yield self._our_row_within(f"1:{ratio}", budget, bytes_by_quality)
            if rival is not None:
                yield self._peer_row_within(*rival, f"1:{ratio}", budget)

    def _our_row_within(self, kind: str, budget: int, bytes_by_quality: dict[float, int]) -> Row:
        self._note(f"{self.ours.name}, {kind}")
        stored = self.store.at(self.picture.subject, self.ours, Point(kind, 0))
        if stored is not None:
            return stored
        quality = finest_within(budget, bytes_by_quality, self._in_slide_bytes, parts=self.parts)
        return self._our_row(Point(kind, quality))

    def _peer_row_within(self, codec: CodecVersion, peer: Contender, kind: str, budget: int) -> Row:
        self._note(f"{codec.name}, {kind}")
        stored = self.store.at(self.picture.subject, codec, Point(kind, 0))
        if stored is not None:
            return stored
        image = code_at_bytes(peer, self.picture.pixels, budget)
        return self._measured(codec, Point(kind, image.setting), whole_bytes(image.data), peer.decode(image.data))

    def _timed(self, codec: CodecVersion, rows: Sequence[Row]) -> list[Row]:
        """The same rows; those nearest to the timed rates have their speed."""
        timed_keys, timed_on = {row.key for row in nearest(rows)}, self._timed_on()
        return [
            self._with_speed(codec, row, timed_on)
            if row.key in timed_keys and (row.speed is None or row.speed.timed_on != timed_on)
            else row
            for row in rows
        ]

    def _with_speed(self, codec: CodecVersion, row: Row, timed_on: str) -> Row:
        self._note(f"timing {codec.name}")
        pixels, options = self.picture.pixels, self.options
        if codec == self.ours:
            quality = row.point.setting
            jobs = jobs_of_ours(pixels, quality, model=options.model, device=self.ours.device, effort=options.effort)
        else:
            jobs = jobs_of_peer(self.peers[codec], pixels, row.point.setting)
        speed = speed_of(jobs, pixels=self.picture.area, threads=options.threads, timed_on=timed_on)
        return self._stored(replace(row, speed=speed))

    def _timed_on(self) -> str:
        machine = Machine.here()
        return f"{machine.cpu}, {machine.gpu or 'no GPU'}, {self.options.threads} threads"

    def _in_slide_bytes(self, quality: float) -> int:
        with self._our_codec(quality) as ours:
            return ours.sizes(ours.prepare()).in_slide_bytes

    @contextmanager
    def _our_codec(self, quality: float) -> Iterator[OurCodec]:
        options = self.options
        with TemporaryDirectory(prefix="histocodec-bench-") as folder:
            yield OurCodec(
                self.picture.pixels,
                quality,
                options.model,
                self.ours.device,
                options.threads,
                Path(folder),
                options.effort,
            )

    def _measured(self, codec: CodecVersion, point: Point, sizes: Sizes, decoded: Pixels) -> Row:
        subject, pixels = self.picture.subject, self.picture.pixels
        return self._stored(
            Row(
                subject=subject,
                coded_by=codec,
                point=point,
                sizes=sizes,
                bpp=8 * sizes.in_slide_bytes / self.picture.area,
                fidelity=fidelity(pixels, decoded),
                nuclei=agreement(pixels, decoded, mpp=subject.mpp),
            )
        )

    def _stored(self, row: Row) -> Row:
        self.store.add(row)
        return row


def complete_curve(rows: Sequence[Row], low: float, high: float, steps: int) -> list[Row]:
    """Those of a peer's rows that are a whole curve of so many steps from `low` to `high` dB or farther; else none."""
    for aim in {(row.point.from_psnr, row.point.to_psnr, row.point.steps, row.point.points) for row in rows}:
        start, end, made_of, points = aim
        if start is None or end is None or made_of != steps or not start <= low <= high <= end:
            continue
        curve = [row for row in rows if (row.point.from_psnr, row.point.to_psnr) == (start, end)]
        if len(curve) == points:
            return curve
    return []


def whole_bytes(data: bytes) -> Sizes:
    """The sizes of a peer's codestream, which are the same however they are counted."""
    return Sizes(len(data), len(data), len(data))
