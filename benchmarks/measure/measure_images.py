"""The rows of a benchmark: every picture by us at each quality, by each peer over the same range, and on the ladder.

    ours      the qualities
    peers     a curve each, from below our coarsest PSNR to above our finest
    ladder    the paper's ratios, in bytes: ours and JPEG 2000
    timing    of each codec, at the points of its curve that are nearest to three rates

A finished row is kept in the store and serves again as long as what made it is the same. A peer's rows do not depend
on ours, only how far its curve must reach: after a change of our model it is measured anew where ours reaches farther.
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
from histocodec.benchmarks.measure.provenance import Machine
from histocodec.benchmarks.measure.result_rows import CURVE, OURS, Coder, Point, Row, RowStore, Sizes
from histocodec.benchmarks.measure.timed_jobs import Ours
from histocodec.benchmarks.measure.timing import jobs_of_ours, jobs_of_peer, nearest, speed_of
from histocodec.benchmarks.peers.codecs import JPEG2000_TILES, PEERS
from histocodec.benchmarks.peers.contender import Contender, coded_at_bytes, ladder
from histocodec.benchmarks.peers.tiles import TILE
from histocodec.device import choose_device
from histocodec.errors import UsageError
from histocodec.formats.encode.options import EncodeOptions
from histocodec.models.config import HyperConfig
from histocodec.models.weights import ModelWeights
from histocodec.slide import Pixels
from histocodec.version import VERSION

BEYOND = 1.0  # dB by which the peers' curves reach beyond ours: all of ours is compared, the next model's, too
METHOD = 7  # of encoding and measuring; raised when a model would give other figures, so that old rows are not reused
LADDER_PEER = "jpeg2000"  # the paper's


@dataclass(frozen=True)
class BenchOptions:
    """How everything is measured; what, the samples say."""

    against: tuple[str, ...]
    qualities: tuple[int, ...]
    ratios: tuple[int, ...]
    steps: int  # points of a peer's curve
    model: str
    device: str
    threads: int  # what "all" means
    effort: float | None = None
    timing: bool = True

    def __post_init__(self) -> None:
        unknown = [name for name in self.against if name not in PEERS]
        if unknown:
            raise UsageError(f"--against {unknown[0]}: not known; {', '.join(PEERS)} are")
        EncodeOptions(effort=self.effort)  # a refusal now, not after an hour


def measure(
    samples: Sequence[Sample],
    options: BenchOptions,
    weights: ModelWeights,
    store: RowStore,
    progress: Callable[[int, int, str], None],
) -> list[Row]:
    """All rows of all samples, those that the store had among them. `progress` is told curves, of how many."""
    rows, each = [], 1 + sum(len(PEERS[name]) for name in options.against)
    for number, sample in enumerate(samples):

        def tell(done: int, text: str, number: int = number, name: str = sample.name) -> None:
            progress(number * each + done, len(samples) * each, f"{name}: {text}")

        rows += _Bench(read(sample), options, weights, store, tell).rows()
    progress(len(samples) * each, len(samples) * each, "")
    return rows


class _Bench:
    """One picture's rows."""

    def __init__(
        self,
        picture: Picture,
        options: BenchOptions,
        weights: ModelWeights,
        store: RowStore,
        tell: Callable[[int, str], None],
    ) -> None:
        self.picture, self.options, self.store, self.tell = picture, options, store, tell
        self.done = 0  # curves
        effort = "" if options.effort is None else f" effort {options.effort:g}"
        tool = f"histocodec {VERSION}, method {METHOD}"
        device = str(choose_device(options.device))
        self.ours = Coder(OURS, f"{OURS}{effort}", weights.id, weights.sha256, device, tool)
        self.parts = PARTS if isinstance(weights.config, HyperConfig) else 1
        self.peers = {
            Coder(name, peer.name, peer.version, None, "cpu", tool): peer
            for name in options.against
            for peer in PEERS[name]
            if peer is not JPEG2000_TILES or max(picture.subject.width, picture.subject.height) > TILE
        }

    def rows(self) -> list[Row]:
        ours = [self._our_row(Point(CURVE, quality)) for quality in self.options.qualities]
        reached = [row.fidelity.psnr for row in ours if math.isfinite(row.fidelity.psnr)]
        curves = {self.ours: ours}
        for coder, peer in self.peers.items() if reached else ():
            self.done += 1
            curves[coder] = self._peer_curve(coder, peer, min(reached), max(reached))
        rungs = list(self._rungs(ours))
        if self.options.timing:
            curves = {coder: self._timed(coder, rows) for coder, rows in curves.items()}
        return [row for rows in (*curves.values(), rungs) for row in rows]

    def note(self, text: str) -> None:
        self.tell(self.done, text)

    def _our_row(self, point: Point) -> Row:
        """At `point`'s quality."""
        self.note(f"{self.ours.name}, quality {point.setting:g}")
        found = self.store.at(self.picture.subject, self.ours, point)
        if found is not None:
            return found
        with self._coded(point.setting) as ours:
            return self._measured(self.ours, point, ours.sizes(ours.prepare()), ours.read())

    def _peer_curve(self, coder: Coder, peer: Contender, low: float, high: float) -> list[Row]:
        """From `low` to `high` dB at least: the finished one if it reaches so far."""
        self.note(coder.name)
        steps, known = self.options.steps, self.store.curve(self.picture.subject, coder)
        finished = serving(known, low, high, steps)
        if finished:
            return finished
        low, high = low - BEYOND, high + BEYOND
        coded = {one.setting: one for one in ladder(peer, self.picture.pixels, low, high, steps=steps)}
        rows = []
        for number, (setting, one) in enumerate(coded.items(), 1):
            self.note(f"{coder.name}, {number} of {len(coded)}")
            point = Point(CURVE, setting, low, high, steps, len(coded))
            row = self.store.at(self.picture.subject, coder, point)
            if row is None:
                row = self._measured(coder, point, whole_bytes(one.data), peer.decode(one.data))
            elif row.point != point:  # a point of another, shorter curve
                row = self._kept(replace(row, point=point))
            rows.append(row)
        return rows

    def _rungs(self, curve: Sequence[Row]) -> Iterator[Row]:
        """Ours and whole-image JPEG 2000, at each of the paper's ratios."""
        rival = next(((coder, peer) for coder, peer in self.peers.items() if coder.codec == LADDER_PEER), None)
        known = {row.point.setting: row.sizes.in_slide_bytes for row in curve}
        for ratio in self.options.ratios:
            wanted = raw_bytes_over(ratio, self.picture.area)
            yield self._our_rung(f"1:{ratio}", wanted, known)
            if rival is not None:
                yield self._peer_rung(*rival, f"1:{ratio}", wanted)

    def _our_rung(self, kind: str, wanted: int, known: dict[float, int]) -> Row:
        self.note(f"{self.ours.name}, {kind}")
        found = self.store.at(self.picture.subject, self.ours, Point(kind, 0))
        if found is not None:
            return found
        return self._our_row(Point(kind, finest_within(wanted, known, self._in_slide_bytes, parts=self.parts)))

    def _peer_rung(self, coder: Coder, peer: Contender, kind: str, wanted: int) -> Row:
        self.note(f"{coder.name}, {kind}")
        found = self.store.at(self.picture.subject, coder, Point(kind, 0))
        if found is not None:
            return found
        one = coded_at_bytes(peer, self.picture.pixels, wanted)
        return self._measured(coder, Point(kind, one.setting), whole_bytes(one.data), peer.decode(one.data))

    def _timed(self, coder: Coder, rows: Sequence[Row]) -> list[Row]:
        """The same rows, those nearest to the timed rates with their speed."""
        chosen, place = {row.key for row in nearest(rows)}, self._place()
        return [
            self._with_speed(coder, row, place)
            if row.key in chosen and (row.speed is None or row.speed.timed_on != place)
            else row
            for row in rows
        ]

    def _with_speed(self, coder: Coder, row: Row, place: str) -> Row:
        self.note(f"timing {coder.name}")
        pixels, options = self.picture.pixels, self.options
        if coder == self.ours:
            quality = row.point.setting
            jobs = jobs_of_ours(pixels, quality, model=options.model, device=self.ours.device, effort=options.effort)
        else:
            jobs = jobs_of_peer(self.peers[coder], pixels, row.point.setting)
        speed = speed_of(jobs, pixels=self.picture.area, threads=options.threads, timed_on=place)
        return self._kept(replace(row, speed=speed))

    def _place(self) -> str:
        machine = Machine.here()
        return f"{machine.cpu}, {machine.gpu or 'no GPU'}, {self.options.threads} threads"

    def _in_slide_bytes(self, quality: float) -> int:
        with self._coded(quality) as ours:
            return ours.sizes(ours.prepare()).in_slide_bytes

    @contextmanager
    def _coded(self, quality: float) -> Iterator[Ours]:
        options = self.options
        with TemporaryDirectory(prefix="histocodec-bench-") as folder:
            yield Ours(
                self.picture.pixels,
                quality,
                options.model,
                self.ours.device,
                options.threads,
                Path(folder),
                options.effort,
            )

    def _measured(self, coder: Coder, point: Point, sizes: Sizes, decoded: Pixels) -> Row:
        subject, pixels = self.picture.subject, self.picture.pixels
        return self._kept(
            Row(
                subject=subject,
                coder=coder,
                point=point,
                sizes=sizes,
                bpp=8 * sizes.in_slide_bytes / self.picture.area,
                fidelity=fidelity(pixels, decoded),
                nuclei=agreement(pixels, decoded, mpp=subject.mpp),
            )
        )

    def _kept(self, row: Row) -> Row:
        self.store.add(row)
        return row


def serving(known: Sequence[Row], low: float, high: float, steps: int) -> list[Row]:
    """Those rows that are a peer's whole curve of so many steps, from `low` to `high` dB or farther; else none."""
    for aim in {(row.point.from_psnr, row.point.to_psnr, row.point.steps, row.point.points) for row in known}:
        start, end, made_of, points = aim
        if start is None or end is None or made_of != steps or not start <= low <= high <= end:
            continue
        rows = [row for row in known if (row.point.from_psnr, row.point.to_psnr) == (start, end)]
        if len(rows) == points:
            return rows
    return []


def whole_bytes(data: bytes) -> Sizes:
    """A peer's: they are the same, however they are counted."""
    return Sizes(len(data), len(data), len(data))
