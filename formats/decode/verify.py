"""Whether a container is as it was written, and, where the source is given, how faithful to it.

structure   digests, presence and maps              always
decoding    every chunk to latents                  unless `quick`
fidelity    every chunk to pixels, measured         with `against`
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError, UsageError
from histocodec.formats.container.abstract_container import Container
from histocodec.formats.container.embeddings import embedding_problems
from histocodec.formats.container.problems import container_problems
from histocodec.formats.container.read import open_container
from histocodec.formats.container.states import BACKGROUND, LOSSLESS, chunks_where
from histocodec.formats.container.store import Location
from histocodec.formats.decode.cache import Cache
from histocodec.formats.decode.model import model_of
from histocodec.geometry import ChunkKey
from histocodec.slide import Slide
from histocodec.sources import with_pyramid
from histocodec.threads import Workers

if TYPE_CHECKING:
    from histocodec.formats.decode.fidelity import LevelFidelity

MAX_PROBLEMS = 100  # reported one by one; more would not tell more about a container
PSNR_TOLERANCE = 0.05  # dB between the stored map and a new measurement: another device may round differently
BLOCK_TOLERANCE = 0.5  # grey values, likewise for block errors: rounding moves single pixels by 1 or 2

Values = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class VerifyReport:
    """What was examined, and what was wrong with it.

    `chunks` counts those that are not background. Fidelity is None where no source was given: `psnr` in dB over all
    chunks of level 0 but background; of all levels, the PSNR of the worst chunk that is not background and of the worst
    that is, and the largest block error, in grey values.
    """

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
    location: Location,
    *,
    against: Slide | None = None,
    quick: bool = False,
    device: str = "auto",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Checks structure, presence and SHA-256 of a container. Unless `quick`, decodes every chunk to latents and reads
    every lossless one. With the source as `against`, also decodes all pixels, measures them and compares them with the
    stored maps. Calls `progress` with the chunks that are done and their total.

    Reports what is wrong with the container, and does not raise it. Raises UsageError where a path does not exist or
    `against` has levels of other sizes, UnsupportedError where there is no container, FormatError where its attributes
    cannot be read, and MissingModelError.

    Memory: 16 bytes for each chunk that the maps claim, 64 with `against`, and a few chunks of each worker.
    """
    began = time.perf_counter()
    container = open_container(location)
    found = chain(container_problems(container), embedding_problems(container))
    problems = [str(problem) for problem in islice(found, MAX_PROBLEMS)]
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
                fidelity, differences = check.compare(with_pyramid(against))
                problems += differences
    finally:
        pool.close()
    shown = tuple(dict.fromkeys(problems))[:MAX_PROBLEMS]
    return VerifyReport(
        container.name, not shown, chunks, shards, shown,
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
    """The chunks for which the maps of a level disagree. Reads all maps, and raises FormatError where one is
    damaged."""
    background = container.tiles(level) == BACKGROUND
    disagreeing = {
        "quality": background & (container.quality(level) != 0),
        "psnr": background != np.isnan(container.psnr(level)),
    }
    block_error = container.block_error(level)
    if block_error is not None:
        disagreeing["block_error"] = background != np.isnan(block_error)
    return [
        f"{container.name}: chunk ({row}, {column}) is background by one of tiles/{level} and {name}/{level} only"
        for name, chunks in disagreeing.items()
        for row, column in np.argwhere(chunks)[:MAX_PROBLEMS]
    ]


class _Check:
    """The two passes that decode: to latents, and to pixels."""

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
        # The decoder of pixels, so that a model whose networks do not fit is noticed, too.
        self.reader = PixelDecoder(container, self.weights, self.device, workers, cache=Cache(0)).reader

    def decode(self) -> list[str]:
        """Decodes every chunk to latents. The entropy decoder's own check is that it ends in the state that the encoder
        began with."""

        def problem(key: ChunkKey) -> str | None:
            try:
                chunk = self.reader.latents(key)
                if self.reader.state(key) == LOSSLESS:
                    self.container.lossless(key)
            except FormatError as exc:
                return str(exc)
            stated = int(quality[key.level][key.row, key.column])
            if chunk is not None and chunk.quality != stated:
                where = f"{self.container.name}: level {key.level} chunk ({key.row}, {key.column})"
                return f"{where}: has quality {chunk.quality}, the map says {stated}"
            return None

        levels = range(len(self.container.attributes.levels))
        quality = [self.container.quality(level) for level in levels]
        stored = (chunks_where(level, self.container.tiles(level) != BACKGROUND) for level in levels)
        problems = []
        for text in self.workers.map(problem, chain.from_iterable(stored)):
            self._step()
            if text is not None:
                problems.append(text)
        return problems

    def compare(self, original: Slide) -> tuple[_Fidelity, list[str]]:
        """Measures all levels against the original: their fidelity, and where the stored maps are wrong."""
        from histocodec.formats.decode.fidelity import measure_level

        source_levels = {(level.width, level.height): i for i, level in enumerate(original.levels)}
        problems: list[str] = []
        stored: list[LevelFidelity] = []
        background: list[LevelFidelity] = []
        for number, level in enumerate(self.container.attributes.levels):
            if (level.width, level.height) not in source_levels:
                raise UsageError(
                    f"{original.name}: has no level of {level.width}x{level.height}, as {self.container.name} has"
                )
            source_level = source_levels[level.width, level.height]
            measure = partial(
                measure_level, self.container, self.weights, self.device, self.workers, original, source_level, number
            )
            stored.append(measure(lambda _: self._step()))
            problems += self._differences(number, stored[-1], measure)
            absent = chunks_where(number, self.container.tiles(number) == BACKGROUND)
            background.append(measure(lambda _: None, keys=absent))
        return _Fidelity(
            stored[0].total,
            _extreme(min, [level.psnr for level in stored]),
            _extreme(max, [level.block_error for level in stored]),
            _extreme(min, [level.psnr for level in background]),
        ), problems

    def _differences(self, level: int, measured: "LevelFidelity", measure: Callable[..., "LevelFidelity"]) -> list[str]:
        """The chunks for which the stored maps of a level are not what is measured, with either arithmetic."""
        from histocodec.device import other_dtype

        psnr, block_error = self.container.psnr(level), self.container.block_error(level)
        if block_error is None:
            block_error = measured.block_error.astype(np.float32)

        def differs(fidelity: "LevelFidelity") -> NDArray[np.bool_]:
            return _differs(block_error, fidelity.block_error, BLOCK_TOLERANCE) | _differs(
                psnr, fidelity.psnr, PSNR_TOLERANCE
            )

        wrong = differs(measured)
        if wrong.any():  # or was it measured on a machine with the other arithmetic?
            wrong &= differs(measure(lambda _: None, dtype=other_dtype(self.device)))
        return [
            f"{self.container.name}: level {level} chunk ({row}, {column}): {measured.psnr[row, column]:.2f} dB and a "
            f"block error of {measured.block_error[row, column]:.2f}, the maps say {psnr[row, column]:.2f} dB and "
            f"{block_error[row, column]:.2f}"
            for row, column in np.argwhere(wrong)[:MAX_PROBLEMS]
        ]

    def _step(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)


def _differs(stored: Values, measured: Values, tolerance: float) -> NDArray[np.bool_]:
    return ~np.isclose(stored, measured, rtol=0, atol=tolerance, equal_nan=True)


def _extreme(choose: Callable[[list[float]], float], maps: Sequence[Values]) -> float | None:
    """The least or largest value, as `choose` is min or max, of several maps; None where all are NaN."""
    ends = [values.min() if choose is min else values.max() for m in maps if (values := m[~np.isnan(m)]).size]
    return float(choose(ends)) if ends else None
