"""Optional dependencies: the extras of pyproject.toml that users install."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from histocodec.errors import UnsupportedError


@contextmanager
def requires_extra(name: Literal["bench", "cohort", "dicom", "remote", "search", "serve", "umap"]) -> Iterator[None]:
    """Wrap the imports of packages that only the extra `name` installs. Make those imports where they are used, so
    that everything else runs without them.

    Raises UnsupportedError, with the command that installs the extra, where one of the packages is missing.
    """
    try:
        yield
    except ImportError as exc:
        raise UnsupportedError(
            f"this needs the Python package {exc.name}, which is not installed: pip install 'histocodec[{name}]'"
        ) from exc
