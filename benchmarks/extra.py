"""What the benchmarks need beyond the package itself: the extra `bench`."""

from collections.abc import Iterator
from contextlib import contextmanager

from histocodec.errors import UnsupportedError


@contextmanager
def bench_extra() -> Iterator[None]:
    """Around imports of scikit-image, SciPy and matplotlib, which are made where they are used: `UnsupportedError`
    says what to install."""
    try:
        yield
    except ImportError as exc:
        raise UnsupportedError(
            f"the Python package {exc.name} is needed for this and not installed: pip install 'histocodec[bench]'"
        ) from exc
