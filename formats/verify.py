"""Whether a container is what was written: digests, presence, every chunk decoded; and how true it is to a source."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError, UsageError
from histocodec.formats.container import Container
from histocodec.formats.embeddings import embedding_problems
from histocodec.formats.layout import BACKGROUND
from histocodec.formats.reader import model_of
from histocodec.geometry import Grid
from histocodec.models.config import STRIDE
from histocodec.slide import Slide
from histocodec.sources import with_pyramid
from histocodec.workers import Workers

MOST_PROBLEMS = 100  # reported one by one; a container with more is not better described by them
PSNR_TOLERANCE = 0.05  # dB between the stored map and a new measurement: another device may round differently


@dataclass(frozen=True)
class VerifyReport:
    """What was looked at, and what was wrong. PSNR in dB only where an original was given, over coded chunks."""

    path: str
    ok: bool
    chunks: int
    shards: int
    problems: tuple[str, ...]
    psnr: float | None
    worst_psnr: float | None
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
    """Checks structure, presence and SHA-256; unless `quick`, entropy-decodes every chunk; with `against`, decodes
    all pixels, measures them and compares with the stored map.

    Problems of the container are reported, not raised. Raises UnsupportedError where `path` is no container,
    MissingModelError, and UsageError where `against` has other levels.
    """
    began = time.perf_counter()
    container = Container.open(Path(path))
    every = chain(container.problems(), embedding_problems(container))
    problems = [str(problem) for problem in islice(every, MOST_PROBLEMS)]
    chunks = shards = 0
    total = worst = None
    try:
        for level in range(len(container.attributes.levels)):
            chunks += int((container.tiles(level) != BACKGROUND).sum())
            shards += int(container.present_shards(level).sum())
    except FormatError as exc:
        problems.append(str(exc))
    pool = Workers(workers)
    try:
        if not quick and not problems:
            check = _Check(container, device, pool, progress, chunks * (1 if against is None else 2))
            problems += check.decode()
            if against is not None and not problems:
                total, worst, found = check.compare(with_pyramid(against))
                problems += found
    finally:
        pool.close()
    shown = tuple(dict.fromkeys(problems))[:MOST_PROBLEMS]
    return VerifyReport(
        str(path), not shown, chunks, shards, shown, total, worst, time.perf_counter() - began
    )


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
        from histocodec.formats.decoder import BlockDecoder
        from histocodec.transform import choose_device

        self.container, self.workers, self.progress, self.total, self.done = container, workers, progress, total, 0
        self.weights, self.device = model_of(container), choose_device(device)
        self.decoder = BlockDecoder(container, self.weights, self.device, workers, cache_bytes=0)

    def decode(self) -> list[str]:
        """Every chunk, to integers: the entropy coder's own check is that it ends where it began."""
        from histocodec.formats.decoder import BlockKey

        def problem(key: BlockKey) -> str | None:
            try:
                chunk = self.decoder.chunk(key)
            except FormatError as exc:
                return str(exc)
            expected = int(self.container.quality(key.level)[key.row, key.column])
            if chunk is not None and chunk.quality != expected:
                where = f"{self.container.path}: level {key.level} chunk ({key.row}, {key.column})"
                return f"{where}: has quality {chunk.quality}, the map says {expected}"
            return None

        keys = [
            BlockKey(level, int(row), int(column))
            for level in range(len(self.container.attributes.levels))
            for row, column in np.argwhere(self.container.tiles(level) != BACKGROUND)
        ]
        found = []
        for result in self.workers.map(problem, keys):
            self._step()
            if result is not None:
                found.append(result)
        return found

    def compare(self, original: Slide) -> tuple[float, float | None, list[str]]:
        """PSNR of level 0, the worst chunk of all levels, and where the stored map is wrong."""
        from histocodec.formats.measure import measure_level
        from histocodec.transform import other_dtype

        levels = self.container.attributes.levels
        sizes = {(level.width, level.height): i for i, level in enumerate(original.levels)}
        totals, worst, found = [], [], []
        for number, level in enumerate(levels):
            if (level.width, level.height) not in sizes:
                raise UsageError(
                    f"{original.name}: has no level of {level.width}x{level.height}, as {self.container.path} has"
                )
            source_level = sizes[level.width, level.height]
            side = self.container.attributes.chunk * STRIDE
            count = Grid(level.height, level.width, side)
            measure = partial(
                measure_level, self.container, self.weights, self.device, self.workers, original, source_level, number
            )
            fidelity = measure(lambda _: self._step())
            totals.append(fidelity.total)
            stored = self.container.psnr(number)
            differs = _differs(stored, fidelity.psnr)
            if differs.any():  # as it was measured on a machine of the other arithmetic?
                differs &= _differs(stored, measure(lambda _: None, dtype=other_dtype(self.device)).psnr)
            for row, column in np.argwhere(differs)[:MOST_PROBLEMS]:
                found.append(
                    f"{self.container.path}: level {number} chunk ({row}, {column}) of {count.rows}x{count.cols}: "
                    f"{fidelity.psnr[row, column]:.2f} dB, the map says {stored[row, column]:.2f}"
                )
            if np.isfinite(fidelity.psnr).any():
                worst.append(float(np.nanmin(fidelity.psnr)))
        return totals[0], min(worst, default=None), found

    def _step(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)


def _differs(stored: NDArray[np.float32], measured: NDArray[np.float32]) -> NDArray[np.bool_]:
    return ~np.isclose(stored, measured, rtol=0, atol=PSNR_TOLERANCE, equal_nan=True)
