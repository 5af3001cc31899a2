"""One shape for every codec that we are measured against, and how to bring one to a wanted quality or size."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from histocodec.errors import UnsupportedError
from histocodec.fidelity import psnr, squared_error
from histocodec.slide import Pixels

HALVINGS = 20  # of the settings' span: far below any difference in bytes

T = TypeVar("T")


@dataclass(frozen=True)
class Contender:
    """One codec in one way of using it. A larger `setting` gives a better image and more bytes."""

    name: str
    version: str  # of the library, and what it was told beside the setting
    settings: tuple[float, float]  # the coarsest and the finest that make sense
    _encode: Callable[[Pixels, float, int], bytes]
    _decode: Callable[[bytes, int], Pixels]
    whole: bool = False  # settings are whole numbers, as a JPEG's quality

    def encode(self, pixels: Pixels, setting: float, *, threads: int = 1) -> bytes:
        try:
            return self._encode(pixels, setting, threads)
        except (AttributeError, ImportError, OSError, RuntimeError, ValueError) as exc:  # each library has its own
            height, width = pixels.shape[:2]
            raise UnsupportedError(f"{self.name} ({self.version}) at {width} x {height} pixels: {exc}") from exc

    def decode(self, data: bytes, *, threads: int = 1) -> Pixels:
        return self._decode(data, threads)


@dataclass(frozen=True)
class Coded:
    """An image, encoded; `psnr` is that of the decoded bytes."""

    setting: float
    data: bytes
    psnr: float


def coded(contender: Contender, pixels: Pixels, setting: float, *, threads: int = 1) -> Coded:
    """Encodes, decodes and compares."""
    return _measured(contender, pixels, setting, contender.encode(pixels, setting, threads=threads), threads)


def coded_at_psnr(
    contender: Contender, pixels: Pixels, wanted: float, *, tolerance: float = 0.02, threads: int = 1
) -> Coded:
    """The nearest to the wanted PSNR in dB that bisection finds between the codec's coarsest and finest."""
    best: Coded | None = None

    def attempt(setting: float) -> Coded:
        return coded(contender, pixels, setting, threads=threads)

    for one in _approach(contender, attempt, lambda one: one.psnr >= wanted):
        if best is None or abs(one.psnr - wanted) < abs(best.psnr - wanted):
            best = one
        if abs(one.psnr - wanted) <= tolerance:
            break
    assert best is not None
    return best


def coded_at_bytes(
    contender: Contender, pixels: Pixels, wanted_bytes: int, *, tolerance: float = 0.001, threads: int = 1
) -> Coded:
    """The largest that bisection finds of at most so many bytes; the search ends where no more than the share
    `tolerance` of them is left. The codec's coarsest where even that has more bytes: look at `data`."""
    best: tuple[float, bytes] | None = None

    def attempt(setting: float) -> tuple[float, bytes]:
        return setting, contender.encode(pixels, setting, threads=threads)

    for setting, data in _approach(contender, attempt, lambda one: len(one[1]) > wanted_bytes):
        if len(data) <= wanted_bytes and (best is None or len(data) >= len(best[1])):
            best = setting, data
        if (1 - tolerance) * wanted_bytes <= len(data) <= wanted_bytes:
            break
    setting, data = best or attempt(contender.settings[0])
    return _measured(contender, pixels, setting, data, threads)


def ladder(
    contender: Contender, pixels: Pixels, low: float, high: float, *, steps: int = 12, threads: int = 1
) -> list[Coded]:
    """Encodings from about PSNR `low` to about `high` in dB, their settings evenly apart; fewer where the
    settings are whole numbers and there are not so many between."""
    first = coded_at_psnr(contender, pixels, low, tolerance=0.25, threads=threads)
    last = coded_at_psnr(contender, pixels, high, tolerance=0.25, threads=threads)
    if first.setting == last.setting:
        return [first]
    settings = np.linspace(first.setting, last.setting, steps)
    if contender.whole:
        settings = np.unique(settings.round())
    between = settings[1:-1].tolist()
    return [first, *(coded(contender, pixels, setting, threads=threads) for setting in between), last]


def _measured(contender: Contender, pixels: Pixels, setting: float, data: bytes, threads: int) -> Coded:
    decoded = contender.decode(data, threads=threads)
    return Coded(setting, data, psnr(squared_error(decoded, pixels), pixels.size))


def _approach(contender: Contender, attempt: Callable[[float], T], too_fine: Callable[[T], bool]) -> Iterator[T]:
    """Attempts at settings nearer and nearer to where they become too fine, none of them twice. Of whole
    settings both neighbours of that place are among them."""
    low, high = contender.settings
    step = 1 if contender.whole else 0
    for _ in range(HALVINGS):
        if low > high:
            return
        setting = (low + high) // 2 if contender.whole else (low + high) / 2
        one = attempt(setting)
        yield one
        low, high = (low, setting - step) if too_fine(one) else (setting + step, high)
