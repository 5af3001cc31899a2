"""Our errors as OpenSlide's too, for code that was written for openslide-python and catches `OpenSlideError`."""

from collections.abc import Iterator
from contextlib import contextmanager

from openslide import OpenSlideError, OpenSlideUnsupportedFormatError

from histocodec.errors import FormatError, HistocodecError, MissingModelError, UnsupportedError, UsageError


class SlideUsageError(UsageError, OpenSlideError):
    """A request that makes no sense, such as a level that does not exist or a negative size."""


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


@contextmanager
def openslide_errors() -> Iterator[None]:
    """Around code that OpenSlide's users call: errors that it raises are `OpenSlideError`s, and still our own."""
    try:
        yield
    except HistocodecError as exc:
        both = _BOTH.get(type(exc))
        if both is None:
            raise
        raise both(*exc.args) from exc
