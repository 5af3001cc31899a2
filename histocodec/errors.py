"""The errors that users meet, and the exit code of each.

Every such error is a `HistocodecError`. Its message names the file, what was found and what is allowed. Errors of other
libraries (`OSError`, `KeyError`, a TIFF library's own) are turned into one of these where they enter, `from exc`.
"""

from typing import ClassVar


class HistocodecError(Exception):
    """The root of all errors raised on purpose. `exit_code` is what the command line returns."""

    exit_code: ClassVar[int] = 1


class UsageError(HistocodecError, ValueError):
    """The request makes no sense: an option out of range, a region of negative size, a file that does not exist."""

    exit_code = 2


class FormatError(HistocodecError):
    """A container, model file or bitstream is broken: cut short, altered, or not what it claims to be."""

    exit_code = 3


class UnsupportedError(HistocodecError):
    """The input may be sound, but this version cannot read it: a folder that is no slide, a 16-bit image, a container
    from a later version. Or something that the request needs is missing: a GPU, an optional package."""

    exit_code = 4


class MissingModelError(UnsupportedError):
    """The model that a container or a request names is not installed, or its file has another SHA-256."""


class SourceError(HistocodecError):
    """A slide opened, but a part of it cannot be read: a damaged tile, a truncated file."""


class StoreError(HistocodecError):
    """A place on another machine cannot be reached just now, refuses access, or gave half an answer. Nothing is known
    to be wrong with the slide; trying again may help."""

    exit_code = 5


class OutputError(HistocodecError):
    """The output cannot be written: it exists already, the disk is full, or the folder is read-only."""


class BusyError(OutputError):
    """Another process writes there just now: an encode to the same place, a run of the same cohort."""
