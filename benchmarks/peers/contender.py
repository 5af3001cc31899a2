"""One shape for every codec that we are compared with, and how to bring one to a PSNR or a size."""

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
    """One codec in one way of using it. A larger `setting` gives a better image and more bytes.

    Pixels are (H, W, 3) uint8.
    """

    name: str
    version: str  # of the library, and what it was told besides the setting
    settings: tuple[float, float]  # the coarsest and the finest that make sense
    _encode: Callable[[Pixels, float, int], bytes]
    _decode: Callable[[bytes, int], Pixels]
    integer_settings: bool = False  # as a JPEG's quality

    def encode(self, pixels: Pixels, setting: float, *, threads: int = 1) -> bytes:
        """Encode pixels into a codestream.

        Raises UnsupportedError, with the codec and the size, where the library refuses or is missing.
        """
        try:
            return self._encode(pixels, setting, threads)
        except (AttributeError, ImportError, OSError, RuntimeError, ValueError) as exc:  # each library has its own
            height, width = pixels.shape[:2]
            raise UnsupportedError(
                f"{self.name} ({self.version}) cannot encode {width} x {height} pixels: {exc}"
            ) from exc

    def decode(self, data: bytes, *, threads: int = 1) -> Pixels:
        """Decode a codestream of `encode`."""
        return self._decode(data, threads)


@dataclass(frozen=True)
class CodedImage:
    """An image as a codec coded it; `psnr` is that of the decoded bytes, in dB."""

    setting: float
    data: bytes
    psnr: float


def code_at_setting(contender: Contender, pixels: Pixels, setting: float, *, threads: int = 1) -> CodedImage:
    """Encode, decode and compare."""
    return _compared(contender, pixels, setting, contender.encode(pixels, setting, threads=threads), threads)


def code_at_psnr(
    contender: Contender, pixels: Pixels, target: float, *, tolerance: float = 0.02, threads: int = 1
) -> CodedImage:
    """Find the setting whose PSNR is nearest to `target`, in dB, by bisection between the coarsest and the finest."""
    best: CodedImage | None = None

    def attempt(setting: float) -> CodedImage:
        return code_at_setting(contender, pixels, setting, threads=threads)

    for image in _bisect(contender, attempt, lambda image: image.psnr >= target):
        if best is None or abs(image.psnr - target) < abs(best.psnr - target):
            best = image
        if abs(image.psnr - target) <= tolerance:
            break
    assert best is not None
    return best


def code_at_bytes(
    contender: Contender, pixels: Pixels, budget: int, *, tolerance: float = 0.001, threads: int = 1
) -> CodedImage:
    """Find the largest codestream of at most `budget` bytes by bisection; stop where at most the share `tolerance` of
    the budget is unused.

    Returns the coarsest setting where even that needs more than the budget: look at `data`.
    """
    best: tuple[float, bytes] | None = None

    def attempt(setting: float) -> tuple[float, bytes]:
        return setting, contender.encode(pixels, setting, threads=threads)

    for setting, data in _bisect(contender, attempt, lambda coded: len(coded[1]) > budget):
        if len(data) <= budget and (best is None or len(data) >= len(best[1])):
            best = setting, data
        if (1 - tolerance) * budget <= len(data) <= budget:
            break
    setting, data = best or attempt(contender.settings[0])
    return _compared(contender, pixels, setting, data, threads)


def code_curve(
    contender: Contender, pixels: Pixels, low: float, high: float, *, steps: int = 12, threads: int = 1
) -> list[CodedImage]:
    """Code at `steps` evenly spaced settings from about PSNR `low` to about `high`, in dB. There are fewer where the
    settings are integers and not so many lie between."""
    first = code_at_psnr(contender, pixels, low, tolerance=0.25, threads=threads)
    last = code_at_psnr(contender, pixels, high, tolerance=0.25, threads=threads)
    if first.setting == last.setting:
        return [first]
    settings = np.linspace(first.setting, last.setting, steps)
    if contender.integer_settings:
        settings = np.unique(settings.round())
    between = settings[1:-1].tolist()
    return [
        first,
        *(code_at_setting(contender, pixels, setting, threads=threads) for setting in between),
        last,
    ]


def _compared(contender: Contender, pixels: Pixels, setting: float, data: bytes, threads: int) -> CodedImage:
    decoded = contender.decode(data, threads=threads)
    return CodedImage(setting, data, psnr(squared_error(decoded, pixels), pixels.size))


def _bisect(contender: Contender, attempt: Callable[[float], T], too_fine: Callable[[T], bool]) -> Iterator[T]:
    """Attempt settings ever nearer to where they become too fine, none of them twice. Of integer settings, both
    neighbours of that point are attempted."""
    low, high = contender.settings
    step = 1 if contender.integer_settings else 0
    for _ in range(HALVINGS):
        if low > high:
            return
        setting = (low + high) // 2 if contender.integer_settings else (low + high) / 2
        result = attempt(setting)
        yield result
        low, high = (low, setting - step) if too_fine(result) else (setting + step, high)
