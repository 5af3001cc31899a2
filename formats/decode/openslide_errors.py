"""Our errors as OpenSlide's too, for code that was written for openslide-python and catches `OpenSlideError`."""

from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import ArgumentError

from openslide import OpenSlideError, OpenSlideUnsupportedFormatError

from histocodec.errors import FormatError, HistocodecError, MissingModelError, UnsupportedError, UsageError


class SlideUsageError(UsageError, OpenSlideError):
    """A request that makes no sense, such as a level that does not exist or a negative size."""


class SlideMissingError(UsageError, OpenSlideUnsupportedFormatError):
    """A path that does not exist, where a slide was to be opened; for OpenSlide that is an unsupported format."""


class SlideClosedError(SlideUsageError, ArgumentError):
    """A read after `close`. `openslide.OpenSlide` raises ArgumentError there, `openslide.ImageSlide` ValueError."""


class SlideFormatError(FormatError, OpenSlideError):
    """A container that is damaged."""


class SlideUnsupportedError(UnsupportedError, OpenSlideUnsupportedFormatError):
    """What is no container, or one that this version cannot read."""


class SlideMissingModelError(MissingModelError, OpenSlideError):
    """A container whose model is not installed."""


_BOTH: dict[type[HistocodecError], type[HistocodecError]] = {
    UsageError: SlideUsageError,
    FormatError: SlideFormatError,
    UnsupportedError: SlideUnsupportedError,
    MissingModelError: SlideMissingModelError,
}
_OPENING: dict[type[HistocodecError], type[HistocodecError]] = {**_BOTH, UsageError: SlideMissingError}


@contextmanager
def openslide_errors(*, opening: bool = False) -> Iterator[None]:
    """Around code that OpenSlide's users call: errors that it raises are `OpenSlideError`s, and still our own. With
    `opening`, the code opens a path, and the only wrong usage is one that does not exist."""
    try:
        yield
    except HistocodecError as exc:
        both = (_OPENING if opening else _BOTH).get(type(exc))
        if both is None:
            raise
        raise both(*exc.args) from exc
