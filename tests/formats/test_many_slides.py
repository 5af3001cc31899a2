"""Slides that are open at once share the threads and the cache of the process."""

import gc
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest

import histocodec
from histocodec.errors import UsageError
from histocodec.formats.decode.cache import SHARED_CACHE
from histocodec.formats.decode.slide import CompressedSlide, open_compressed
from histocodec.threads import SHARED_WORKERS, default_workers
from tests.support.slides import whole

SLIDES = 200
LIMIT = 4 << 20  # bytes: about five chunks' pixels


def worker_threads() -> set[threading.Thread]:
    """The threads that decode in this process."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("histocodec")}


def test_two_hundred_slides_have_one_pool_and_one_cache(folder: Path) -> None:
    histocodec.configure(workers=2, cache_bytes=LIMIT)
    before = worker_threads()
    slides = [histocodec.open(folder / "a.zarr", device="cpu") for _ in range(SLIDES)]
    try:
        assert worker_threads() <= before  # none before the first read
        pixels = [slide.read_array(0, 0, 600, 20) for slide in slides]
        assert len(worker_threads() - before) == 2
        assert 0 < SHARED_CACHE.bytes <= LIMIT
        assert all(np.array_equal(part, pixels[0]) for part in pixels)
    finally:
        for slide in slides:
            slide.close()


def test_closing_a_slide_frees_its_part_and_no_other(folder: Path) -> None:
    with histocodec.open(folder / "a.zarr", device="cpu") as kept:
        expected = whole(kept)
        held = SHARED_CACHE.bytes
        with histocodec.open(folder / "a.zarr", device="cpu") as closed:
            whole(closed)
            assert SHARED_CACHE.bytes > held
        assert SHARED_CACHE.bytes == held
        assert np.array_equal(whole(kept), expected)


def test_a_slide_that_is_dropped_without_closing_leaves_nothing_in_the_cache(folder: Path) -> None:
    gc.collect()
    held = SHARED_CACHE.bytes
    slide = histocodec.open(folder / "a.zarr", device="cpu")
    whole(slide)
    assert SHARED_CACHE.bytes > held
    del slide
    gc.collect()
    assert SHARED_CACHE.bytes == held


def test_slides_are_closed_while_another_is_read(folder: Path) -> None:
    histocodec.configure(cache_bytes=LIMIT)
    with histocodec.open(folder / "a.zarr", device="cpu") as kept, ThreadPoolExecutor(1) as thread:
        expected = whole(kept)
        reads = [thread.submit(whole, kept) for _ in range(10)]
        for _ in range(10):
            with histocodec.open(folder / "a.zarr", device="cpu") as closed:
                closed.read_array(0, 0, 40, 40)
        assert all(np.array_equal(read.result(120), expected) for read in reads)


@pytest.mark.parametrize("workers", [None, 1])
def test_a_read_that_runs_while_its_slide_is_closed_ends_well(folder: Path, workers: int | None) -> None:
    slide = open_compressed(folder / "a.zarr", device="cpu", workers=workers)
    expected = whole(slide)
    chunks = slide.decoder.chunks(slide.container.attributes.chunks_in(0, slide.levels[0].region))
    _, first = next(chunks)
    slide.close()
    later = [pixels for _, pixels in chunks]
    assert np.array_equal(first, expected[: first.shape[0], : first.shape[1]])
    assert len(later) == 5
    with pytest.raises(UsageError, match="closed"):
        slide.read_array(0, 0, 5, 5)


def test_a_slide_may_have_a_pool_and_a_cache_of_its_own(folder: Path) -> None:
    held, threads = SHARED_CACHE.bytes, worker_threads()
    with histocodec.open(folder / "a.zarr", device="cpu", workers=3, cache_bytes=LIMIT) as slide:
        whole(slide)
        assert len(worker_threads() - threads) == 3
        assert SHARED_CACHE.bytes == held
    assert worker_threads() <= threads


def test_settings_change_under_open_slides(slide: CompressedSlide) -> None:
    expected = whole(slide)
    for workers in (1, 3):
        histocodec.configure(workers=workers, cache_bytes=0)
        assert SHARED_WORKERS.count == workers
        assert np.array_equal(whole(slide), expected)
    SHARED_WORKERS.resize(None)
    assert SHARED_WORKERS.count == default_workers()


@pytest.mark.parametrize("setting", [{"workers": 0}, {"workers": -1}, {"cache_bytes": -1}])
def test_settings_that_make_no_sense_are_refused(folder: Path, setting: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="needed"):
        histocodec.configure(**setting)
    with pytest.raises(UsageError, match="needed"):
        histocodec.open(folder / "a.zarr", **setting)


def test_a_cache_of_openslide_is_shared_by_the_slides_that_are_given_it(folder: Path) -> None:
    given = openslide.OpenSlideCache(LIMIT)
    with histocodec.open(folder / "a.zarr") as one, histocodec.open(folder / "a.zarr") as other:
        expected = whole(one)
        for slide in (one, other):
            slide.set_cache(given)
            assert np.array_equal(whole(slide), expected)
        assert one._cache is other._cache
        assert (one._cache.limit, 0 < one._cache.bytes <= LIMIT) == (LIMIT, True)


def test_a_pickled_slide_uses_the_settings_of_its_process(slide: CompressedSlide) -> None:
    with pickle.loads(pickle.dumps(slide)) as copy:
        assert copy._workers is SHARED_WORKERS
        assert copy._cache is SHARED_CACHE
        assert np.array_equal(whole(copy), whole(slide))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_is_forked_during_a_read_has_its_own_threads(slide: CompressedSlide) -> None:
    histocodec.configure(workers=2, cache_bytes=0)
    expected = slide.read_array(0, 0, 600, 600)
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            slide.read_array(0, 0, 600, 600)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for _ in range(3):
            child = os.fork()
            if child == 0:
                same = np.array_equal(slide.read_array(0, 0, 600, 600), expected)
                os._exit(0 if same and len(worker_threads()) == 2 else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join(60)


def test_work_that_uses_its_own_pool_does_not_wait_for_itself(folder: Path) -> None:
    """More reads than workers, each of which is on a worker and needs workers."""
    histocodec.configure(workers=2)
    with histocodec.open(folder / "a.zarr", device="cpu") as slide:
        places = [(x, 0) for x in range(0, 1200, 200)]
        found = list(SHARED_WORKERS.map(lambda place: slide.read_array(*place, 300, 600), places))
        for place, pixels in zip(places, found, strict=True):
            assert np.array_equal(pixels, slide.read_array(*place, 300, 600))


def test_the_edge_of_a_level_takes_no_more_of_the_cache_than_its_pixels(folder: Path) -> None:
    with histocodec.open(folder / "wide.zarr", device="cpu") as slide:  # 40 pixels high
        for _, pixels in slide.decoder.chunks(slide.container.attributes.chunks_in(0, slide.levels[0].region)):
            owner = pixels if pixels.base is None else pixels.base
            assert owner.nbytes == pixels.nbytes
