"""Whether a container is what was written: digests, presence, every chunk decoded; and how true it is to a source."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError, UsageError
from histocodec.formats.container.embeddings import embedding_problems
from histocodec.formats.container.integrity import container_problems
from histocodec.formats.container.layout import BACKGROUND, LOSSLESS
from histocodec.formats.container.read import Container
from histocodec.formats.decode.model import model_of
from histocodec.geometry import ChunkKey
from histocodec.slide import Slide
from histocodec.sources import with_pyramid
from histocodec.threads import Workers

if TYPE_CHECKING:
    from histocodec.formats.decode.fidelity import LevelFidelity

MOST_PROBLEMS = 100  # reported one by one; a container with more is not better described by them
PSNR_TOLERANCE = 0.05  # dB between the stored map and a new measurement: another device may round differently
BLOCK_TOLERANCE = 0.5  # grey values, likewise for local errors: rounding moves single pixels by 1 or 2

Values = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class VerifyReport:
    """What was looked at, and what was wrong. Fidelity only where an original was given: PSNR in dB over all chunks
    but background, of the worst of these, and of the worst of background; RMS errors in grey values."""

    path: str
    ok: bool
    chunks: int
    shards: int
    problems: tuple[str, ...]
    psnr: float | None
    worst_psnr: float | None
    worst_block_error: float | None
    worst_background_psnr: float | None
    seconds: float


def verify(
    path: str | Path,
    *,
    against: Slide | None = None,
    quick: bool = False,
    device: str = "auto",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Checks structure, presence and SHA-256; unless `quick`, entropy-decodes every chunk and reads every lossless
    one; with `against`, decodes all pixels, measures them and compares with the stored maps.

    Problems of the container are reported, not raised. Raises UnsupportedError where `path` is no container,
    MissingModelError, and UsageError where `against` has other levels.
    """
    began = time.perf_counter()
    container = Container.open(Path(path))
    every = chain(container_problems(container), embedding_problems(container))
    problems = [str(problem) for problem in islice(every, MOST_PROBLEMS)]
    chunks = shards = 0
    fidelity = _Fidelity()
    try:
        for level in range(len(container.attributes.levels)):
            chunks += int((container.tiles(level) != BACKGROUND).sum())
            shards += int(container.present_shards(level).sum())
            problems += _contradictions(container, level)
        container.stats()
    except FormatError as exc:
        problems.append(str(exc))
    pool = Workers(workers)
    try:
        if not quick and not problems:
            check = _Check(container, device, pool, progress, chunks * (1 if against is None else 2))
            problems += check.decode()
            if against is not None and not problems:
                fidelity, found = check.compare(with_pyramid(against))
                problems += found
    finally:
        pool.close()
    shown = tuple(dict.fromkeys(problems))[:MOST_PROBLEMS]
    return VerifyReport(
        str(path), not shown, chunks, shards, shown,
        fidelity.psnr, fidelity.worst_psnr, fidelity.worst_block_error, fidelity.worst_background_psnr,
        time.perf_counter() - began,
    )  # fmt: skip


@dataclass(frozen=True)
class _Fidelity:
    """As in VerifyReport."""

    psnr: float | None = None
    worst_psnr: float | None = None
    worst_block_error: float | None = None
    worst_background_psnr: float | None = None


def _contradictions(container: Container, level: int) -> list[str]:
    """Where the maps of a level do not go together. Reads them all; raises FormatError where one is broken."""
    background = container.tiles(level) == BACKGROUND
    wrong = {
        "quality": background & (container.quality(level) != 0),
        "psnr": background != np.isnan(container.psnr(level)),
    }
    block_error = container.block_error(level)
    if block_error is not None:
        wrong["block_error"] = background != np.isnan(block_error)
    return [
        f"{container.path}: chunk ({row}, {column}) is background by one of tiles/{level} and {name}/{level} only"
        for name, places in wrong.items()
        for row, column in np.argwhere(places)[:MOST_PROBLEMS]
    ]


class _Check:
    """The two passes that decode."""

    def __init__(
        self,
        container: Container,
        device: str,
        workers: Workers,
        progress: Callable[[int, int], None] | None,
        total: int,
    ) -> None:
        from histocodec.device import choose_device
        from histocodec.formats.decode.pixels import PixelDecoder

        self.container, self.workers, self.progress, self.total, self.done = container, workers, progress, total, 0
        self.weights, self.device = model_of(container), choose_device(device)
        self.decoder = PixelDecoder(container, self.weights, self.device, workers, cache_bytes=0)

    def decode(self) -> list[str]:
        """Every chunk, to integers: the entropy coder's own check is that it ends where it began."""
        tiles = [self.container.tiles(level) for level in range(len(self.container.attributes.levels))]

        def problem(key: ChunkKey) -> str | None:
            try:
                chunk = self.decoder.reader.latents(key)
                if tiles[key.level][key.row, key.column] == LOSSLESS:
                    self.container.lossless(key)
            except FormatError as exc:
                return str(exc)
            expected = int(self.container.quality(key.level)[key.row, key.column])
            if chunk is not None and chunk.quality != expected:
                where = f"{self.container.path}: level {key.level} chunk ({key.row}, {key.column})"
                return f"{where}: has quality {chunk.quality}, the map says {expected}"
            return None

        keys = [
            ChunkKey(level, int(row), int(column))
            for level, stored in enumerate(tiles)
            for row, column in np.argwhere(stored != BACKGROUND)
        ]
        found = []
        for result in self.workers.map(problem, keys):
            self._step()
            if result is not None:
                found.append(result)
        return found

    def compare(self, original: Slide) -> tuple[_Fidelity, list[str]]:
        """How true it is, and where the stored maps are wrong."""
        from histocodec.formats.decode.fidelity import measure_level

        levels = self.container.attributes.levels
        sizes = {(level.width, level.height): i for i, level in enumerate(original.levels)}
        found: list[str] = []
        coded, bare = [], []
        for number, level in enumerate(levels):
            if (level.width, level.height) not in sizes:
                raise UsageError(
                    f"{original.name}: has no level of {level.width}x{level.height}, as {self.container.path} has"
                )
            source_level = sizes[level.width, level.height]
            measure = partial(
                measure_level, self.container, self.weights, self.device, self.workers, original, source_level, number
            )
            coded.append(measure(lambda _: self._step()))
            found += self._differences(number, coded[-1], measure)
            background = np.argwhere(self.container.tiles(number) == BACKGROUND)
            keys = [ChunkKey(number, int(row), int(column)) for row, column in background]
            bare.append(measure(lambda _: None, keys=keys))
        return _Fidelity(
            coded[0].total,
            _extreme(min, [one.psnr for one in coded]),
            _extreme(max, [one.block_error for one in coded]),
            _extreme(min, [one.psnr for one in bare]),
        ), found

    def _differences(self, level: int, measured: "LevelFidelity", measure: Callable[..., "LevelFidelity"]) -> list[str]:
        """Where the stored maps of a level are not what is measured, in neither arithmetic."""
        from histocodec.device import other_dtype

        psnr, block_error = self.container.psnr(level), self.container.block_error(level)
        if block_error is None:
            block_error = measured.block_error.astype(np.float32)

        def differs(found: "LevelFidelity") -> NDArray[np.bool_]:
            local = _differs(block_error, found.block_error, BLOCK_TOLERANCE)
            return local | _differs(psnr, found.psnr, PSNR_TOLERANCE)

        wrong = differs(measured)
        if wrong.any():  # as it was measured on a machine of the other arithmetic?
            wrong &= differs(measure(lambda _: None, dtype=other_dtype(self.device)))
        return [
            f"{self.container.path}: level {level} chunk ({row}, {column}): {measured.psnr[row, column]:.2f} dB and a "
            f"local error of {measured.block_error[row, column]:.2f}, the map says {psnr[row, column]:.2f} dB and "
            f"{block_error[row, column]:.2f}"
            for row, column in np.argwhere(wrong)[:MOST_PROBLEMS]
        ]

    def _step(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)


def _differs(stored: Values, measured: Values, tolerance: float) -> NDArray[np.bool_]:
    return ~np.isclose(stored, measured, rtol=0, atol=tolerance, equal_nan=True)


def _extreme(choose: Callable[[list[float]], float], maps: Sequence[Values]) -> float | None:
    """The least or largest value of several maps; None where there is none. NaN is no value."""
    values = np.concatenate([one[~np.isnan(one)] for one in maps])
    return float(choose(values.tolist())) if values.size else None
