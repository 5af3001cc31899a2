"""What compressed slides share: the threads and the cache of the process, unless a slide has its own."""

from weakref import WeakKeyDictionary

import openslide

from histocodec.errors import UsageError
from histocodec.formats.decode.cache import SHARED_CACHE, Cache
from histocodec.threads import SHARED_WORKERS, Workers

_given: WeakKeyDictionary[openslide.OpenSlideCache, Cache] = WeakKeyDictionary()


def configure(*, workers: int | None = None, cache_bytes: int | None = None) -> None:
    """Sets what the compressed slides of this process share: `workers` threads, and a cache that keeps at most
    `cache_bytes` of decoded latents and pixels. What is None stays as it is.

    At first there is a thread for each core that the process may use, and 256 MiB. Open slides follow at once; slides
    that were opened with `workers` or `cache_bytes` keep their own. Forked processes take the settings over, and have
    threads and a cache of their own. Raises UsageError for less than one worker or a negative cache.
    """
    check_settings(workers, cache_bytes)
    if workers is not None:
        SHARED_WORKERS.resize(workers)
    if cache_bytes is not None:
        SHARED_CACHE.resize(cache_bytes)


def check_settings(workers: int | None, cache_bytes: int | None) -> None:
    """Raises UsageError for less than one worker or a negative cache."""
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} workers; at least 1 is needed")
    if cache_bytes is not None and cache_bytes < 0:
        raise UsageError(f"a cache of {cache_bytes} bytes; 0 or more are needed")


def workers_of(count: int | None) -> Workers:
    """A pool of `count` threads, or the process's own."""
    return SHARED_WORKERS if count is None else Workers(count)


def cache_of(limit: int | None) -> Cache:
    """A cache of `limit` bytes, or the process's own."""
    return SHARED_CACHE if limit is None else Cache(limit)


def cache_for(given: openslide.OpenSlideCache) -> Cache:
    """The cache that stands for one of OpenSlide's: as large, and shared by all slides that are given the same. Raises
    TypeError for what is no cache."""
    if not isinstance(given, openslide.OpenSlideCache):
        raise TypeError(f"{given!r} is no openslide.OpenSlideCache")
    return _given.setdefault(given, Cache(given._capacity))  # it has no public name
