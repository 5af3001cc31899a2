"""Packages that are installed only where somebody asks for them: the extras `search` and `umap`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from histocodec.errors import UnsupportedError


@contextmanager
def extra(name: Literal["search", "umap"]) -> Iterator[None]:
    """Around imports that the extra `name` brings, which are made where they are used: `UnsupportedError` says what
    to install."""
    try:
        yield
    except ImportError as exc:
        raise UnsupportedError(
            f"the Python package {exc.name} is needed for this and not installed: pip install 'histocodec[{name}]'"
        ) from exc
