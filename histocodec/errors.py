"""What can go wrong, and the exit code that says so.

Every error that a user can meet is a `HistocodecError`. Its message names the file, what was found and
what is allowed. Foreign errors (`OSError`, `KeyError`, a TIFF library's own) are turned into one of these at
the border, `from exc`.
"""

from typing import ClassVar


class HistocodecError(Exception):
    """The root of all errors raised on purpose. `exit_code` is what the command line returns."""

    exit_code: ClassVar[int] = 1


class UsageError(HistocodecError, ValueError):
    """The request itself makes no sense: an option out of range, a region of negative size."""

    exit_code = 2


class FormatError(HistocodecError):
    """A container or bitstream is broken: cut short, altered, or not what it claims to be."""

    exit_code = 3


class UnsupportedError(HistocodecError):
    """The input is sound, perhaps, but not something this version reads: a directory that is no slide,
    a 16-bit image, a container from a later version."""

    exit_code = 4


class MissingModelError(UnsupportedError):
    """A container names a model whose weights are not at hand, or whose SHA-256 differs."""


class SourceError(HistocodecError):
    """A slide could be opened but not read to its end: a damaged tile, a truncated file."""


class OutputError(HistocodecError):
    """The output could not be written: it exists already, the disk is full, the folder is read-only."""
