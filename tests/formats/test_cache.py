"""The cache drops what was used least recently, and no two threads decode the same chunk at a time."""

import gc
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from histocodec.codec.chunk import HyperChunkCodec
from histocodec.formats.decode.cache import Cache, CachePart, Underway, alone
from histocodec.formats.decode.slide import open_compressed
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions
from histocodec.geometry import ChunkKey
from histocodec.models.weights import MODELS_VARIABLE
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from histocodec.threads import Workers
from tests.support.tiny import tiny_model

KEY, SECOND, THIRD = (ChunkKey(0, 0, column) for column in range(3))


def part_of(cache: Cache) -> CachePart[ChunkKey, str]:
    """A part of its own, as each slide has."""
    return CachePart(cache)


def test_the_value_that_was_used_least_recently_is_dropped() -> None:
    cache = Cache(limit=20)
    part = part_of(cache)
    part.put(KEY, "first", 10)
    part.put(SECOND, "second", 10)
    assert part.get(KEY) == "first"
    part.put(THIRD, "third", 5)
    assert [part.get(key) for key in (KEY, SECOND, THIRD)] == ["first", None, "third"]
    assert cache.bytes == 15


def test_the_newest_value_stays_even_beyond_the_limit() -> None:
    cache = Cache(limit=0)
    part = part_of(cache)
    part.put(KEY, "first", 10)
    assert part.get(KEY) == "first"
    part.put(SECOND, "second", 10)
    assert (part.get(KEY), part.get(SECOND), cache.bytes) == (None, "second", 10)


def test_a_second_value_of_a_key_is_ignored() -> None:
    cache = Cache(limit=100)
    part = part_of(cache)
    part.put(KEY, "first", 10)
    part.put(KEY, "again", 20)
    assert (part.get(KEY), cache.bytes) == ("first", 10)


def test_parts_share_the_limit_and_no_keys() -> None:
    cache = Cache(limit=20)
    one, other = part_of(cache), part_of(cache)
    one.put(KEY, "one", 10)
    other.put(KEY, "other", 10)
    assert (one.get(KEY), other.get(KEY)) == ("one", "other")
    one.put(SECOND, "more", 15)
    assert (one.get(KEY), other.get(KEY), one.get(SECOND), cache.bytes) == (None, None, "more", 15)


def test_a_closed_part_keeps_nothing_and_leaves_the_others_alone() -> None:
    cache = Cache(limit=100)
    one, other = part_of(cache), part_of(cache)
    one.put(KEY, "one", 10)
    other.put(KEY, "other", 20)
    one.close()
    one.put(SECOND, "late", 10)
    assert (one.get(KEY), one.get(SECOND), other.get(KEY), cache.bytes) == (None, None, "other", 20)


def test_a_collected_part_leaves_nothing_behind() -> None:
    cache = Cache(limit=100)
    part = part_of(cache)
    part.put(KEY, "first", 10)
    del part
    gc.collect()
    assert cache.bytes == 0


def test_a_part_that_is_collected_while_its_cache_is_in_use_waits_for_nobody() -> None:
    """A finalizer may run within a method of the cache, on the same thread."""
    cache = Cache(limit=100)
    part, other = part_of(cache), part_of(cache)
    part.put(KEY, "first", 10)
    with cache._lock:
        del part
        gc.collect()
    other.put(KEY, "other", 20)
    assert cache.bytes == 20


def test_a_lower_limit_holds_at_once() -> None:
    cache = Cache(limit=100)
    part = part_of(cache)
    for key in (KEY, SECOND, THIRD):
        part.put(key, "value", 30)
    cache.resize(30)
    assert ([part.get(key) for key in (KEY, SECOND, THIRD)], cache.bytes) == ([None, None, "value"], 30)


def test_a_part_of_a_larger_array_is_cached_without_the_rest() -> None:
    whole = np.zeros((512, 512, 3), np.uint8)
    assert alone(whole) is whole
    strip = alone(whole[:1])
    assert strip.base is None
    assert np.array_equal(strip, whole[:1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_finds_no_lock_held() -> None:
    cache, workers = Cache(limit=100), Workers(1)
    part = part_of(cache)
    with cache._lock, workers._lock:
        child = os.fork()
        if child == 0:
            part.put(KEY, "first", 10)
            os._exit(0 if part.get(KEY) == "first" and workers.run(lambda: 5) == 5 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_second_thread_waits_for_the_first() -> None:
    underway, seen = Underway(), []
    begun, go_on = threading.Event(), threading.Event()

    def first() -> None:
        with underway.claim(KEY) as mine:
            begun.set()
            go_on.wait(10)
            seen.append(("first", mine))

    def second() -> None:
        with underway.claim(KEY) as mine:
            seen.append(("second", mine))

    threads = [threading.Thread(target=target) for target in (first, second)]
    threads[0].start()
    assert begun.wait(10)
    assert list(underway.free_first([KEY, SECOND])) == [SECOND, KEY]
    threads[1].start()
    time.sleep(0.05)
    assert seen == []
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert seen == [("first", True), ("second", False)]
    with underway.claim(KEY) as mine:
        assert mine


def test_a_failure_frees_the_chunk() -> None:
    underway = Underway()
    with pytest.raises(ValueError, match="broken"), underway.claim(KEY):
        raise ValueError("broken")
    with underway.claim(KEY) as mine:
        assert mine


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_waits_for_nobody() -> None:
    underway = Underway()
    with underway.claim(KEY):
        child = os.fork()
        if child == 0:
            with underway.claim(KEY) as mine:
                os._exit(0 if mine else 1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.slow
def test_each_chunk_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four chunks on four threads; the window of each touches all four."""
    model = tiny_model(tmp_path)
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path))
    pixels = synthetic_slide(1024, 1024, seed=4)
    encode_slide(ArraySlide(pixels, name="a"), tmp_path / "a.zarr", EncodeOptions(model=str(model), quality=40))
    decoded: list[int] = []
    plain = HyperChunkCodec.decode_used

    def counted(self: HyperChunkCodec, data: bytes, shape: tuple[int, ...], *dtype: np.dtype) -> np.ndarray:
        decoded.append(len(data))
        time.sleep(0.05)  # long enough for the others to ask for it
        return plain(self, data, shape, *dtype)

    monkeypatch.setattr(HyperChunkCodec, "decode_used", counted)
    with open_compressed(tmp_path / "a.zarr", workers=4) as slide:
        assert slide.read_array(0, 0, 1024, 1024).shape == (1024, 1024, 3)
    assert len(decoded) == 4
