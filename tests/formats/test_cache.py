"""The cache drops what was used least recently, and no two threads decode the same chunk at a time."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from histocodec.codec.chunk import HyperChunkCodec
from histocodec.formats.decode.cache import Cache, Underway
from histocodec.formats.decode.slide import open_compressed
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions
from histocodec.geometry import ChunkKey
from histocodec.models.weights import MODELS_VARIABLE
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.tiny import tiny_model

KEY, SECOND, THIRD = (ChunkKey(0, 0, column) for column in range(3))


def test_the_value_that_was_used_least_recently_is_dropped() -> None:
    cache: Cache[str] = Cache(limit=20)
    cache.put(KEY, "first", 10)
    cache.put(SECOND, "second", 10)
    assert cache.get(KEY) == "first"
    cache.put(THIRD, "third", 5)
    assert [cache.get(key) for key in (KEY, SECOND, THIRD)] == ["first", None, "third"]
    assert cache.bytes == 15


def test_the_newest_value_stays_even_beyond_the_limit() -> None:
    cache: Cache[str] = Cache(limit=0)
    cache.put(KEY, "first", 10)
    assert cache.get(KEY) == "first"
    cache.put(SECOND, "second", 10)
    assert (cache.get(KEY), cache.get(SECOND), cache.bytes) == (None, "second", 10)


def test_a_second_value_of_a_key_is_ignored() -> None:
    cache: Cache[str] = Cache(limit=100)
    cache.put(KEY, "first", 10)
    cache.put(KEY, "again", 20)
    assert (cache.get(KEY), cache.bytes) == ("first", 10)


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
    plain = HyperChunkCodec.decode

    def counted(self: HyperChunkCodec, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        decoded.append(len(data))
        time.sleep(0.05)  # long enough for the others to ask for it
        return plain(self, data, shape)

    monkeypatch.setattr(HyperChunkCodec, "decode", counted)
    with open_compressed(tmp_path / "a.zarr", workers=4) as slide:
        assert slide.read_array(0, 0, 1024, 1024).shape == (1024, 1024, 3)
    assert len(decoded) == 4
