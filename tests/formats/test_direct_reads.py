"""Direct reads: a small region where nothing is cached is decoded from a window of its own, to the same pixels."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import histocodec
from histocodec.codec.chunk import HyperChunkCodec
from histocodec.formats.decode.chunks import ChunkLatents, ChunkReader
from histocodec.formats.decode.pixels import WORTH_A_CHUNK, PixelDecoder
from histocodec.formats.decode.slide import CompressedSlide, open_compressed
from histocodec.geometry import ChunkKey, Region
from histocodec.slide import Pixels
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.tiny import tiny_integer_weights, tiny_model
from tests.support.version2 import make_lossless

SIZE = (1700, 1300)
BACKGROUND = (240, 241, 239)
INSIDE, CORNERS = Region(600, 620, 200, 180), Region(900, 400, 256, 256)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tissue, a chunk of background at (0, 0), and one stored losslessly at (1, 2)."""
    folder = tmp_path_factory.mktemp("direct")
    model = folder / "integer.safetensors"
    model.write_bytes(tiny_integer_weights().data)
    pixels = synthetic_slide(*SIZE, seed=6)
    pixels[:512, :512] = BACKGROUND
    source = ArraySlide(pixels, background=BACKGROUND)
    histocodec.encode(source, folder / "a.zarr", model=str(model), device="cpu", embed_model=True, effort=0)
    make_lossless(folder / "a.zarr", source, 0, 1, 2)
    return folder / "a.zarr"


@pytest.fixture(scope="module")
def whole(path: Path) -> Pixels:
    with open_compressed(path, device="cpu") as slide:
        return slide.read(slide.levels[0].region, 0)


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Region]]:
    """The regions that were read directly."""
    regions: list[Region] = []
    plain = PixelDecoder.read_direct_here

    def noted(self: PixelDecoder, level: int, region: Region) -> Pixels:
        regions.append(region)
        return plain(self, level, region)

    monkeypatch.setattr(PixelDecoder, "read_direct_here", noted)
    yield regions


def crop(pixels: Pixels, region: Region) -> Pixels:
    return pixels[region.y : region.y_end, region.x : region.x_end]


@pytest.mark.slow
def test_direct_reads_are_crops_of_the_whole_wherever_they_lie(path: Path, whole: Pixels, direct: list[Region]) -> None:
    rng = np.random.default_rng(0)
    places = rng.integers((0, 0), (SIZE[0] - 1, SIZE[1] - 1), (60, 2)).tolist()
    sizes = rng.integers(1, 330, (60, 2)).tolist()
    for (x, y), (width, height) in zip(places, sizes, strict=True):
        region = Region(x, y, min(width, SIZE[0] - x), min(height, SIZE[1] - y))
        with open_compressed(path, device="cpu") as slide:
            assert np.array_equal(slide.read(region, 0), crop(whole, region)), region
    assert len(direct) > 30
    for touched in (Region(0, 0, 512, 512), Region(1024, 512, 512, 512)):  # background, and a lossless chunk
        assert any(not region.intersect(touched).empty and not touched.contains(region) for region in direct)


@pytest.mark.parametrize(
    "region",
    [
        pytest.param(Region(512, 512, 512, 512), id="a whole chunk"),
        pytest.param(Region(100, 100, 200, 200), id="background alone"),
        pytest.param(Region(1100, 600, 200, 200), id="lossless alone"),
        pytest.param(Region(530, 530, 450, 450), id="most of a chunk"),
        pytest.param(Region(600, 200, 900, 900), id="more than a chunk"),
        pytest.param(Region(5, 5, 0, 9), id="nothing"),
    ],
)
def test_other_regions_are_read_by_chunks(path: Path, whole: Pixels, direct: list[Region], region: Region) -> None:
    with open_compressed(path, device="cpu") as slide:
        assert np.array_equal(slide.read(region, 0), crop(whole, region))
    assert direct == []


def test_many_reads_nearby_decode_the_whole_chunk_once(path: Path, whole: Pixels, direct: list[Region]) -> None:
    with open_compressed(path, device="cpu") as slide:
        for shift in range(12):
            region = INSIDE.shifted(3 * shift, 0)
            assert np.array_equal(slide.read(region, 0), crop(whole, region))
        decoder = slide.decoder
        spent = sum(decoder.window_area(region) for region in direct)
        chunk = decoder.window_area(Region(512, 512, 512, 512))
    assert direct == [INSIDE.shifted(3 * shift, 0) for shift in range(len(direct))]
    assert chunk < spent + decoder.window_area(INSIDE) and spent <= WORTH_A_CHUNK * chunk


def test_patches_on_a_grid_decode_the_latents_of_each_chunk_once(
    path: Path, whole: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[ChunkKey] = []
    plain = ChunkReader.decode

    def noted(self: ChunkReader, key: ChunkKey, data: bytes | None = None) -> ChunkLatents:
        decoded.append(key)
        return plain(self, key, data)

    monkeypatch.setattr(ChunkReader, "decode", noted)
    with open_compressed(path, device="cpu", workers=1) as slide:
        for y in range(0, SIZE[1] - 256, 256):
            for x in range(0, SIZE[0] - 256, 256):
                assert np.array_equal(slide.read(Region(x, y, 256, 256), 0), whole[y : y + 256, x : x + 256])
    assert len(decoded) == len(set(decoded)) > 5


def test_what_is_cached_and_what_one_thread_decodes_waits_for_no_other(
    path: Path, whole: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submitted(*_: object) -> None:
        raise AssertionError("a thread of the pool was asked")

    with open_compressed(path, device="cpu", workers=1) as slide:
        monkeypatch.setattr("histocodec.threads.Workers._submit", submitted)
        for region in (INSIDE, CORNERS, Region(512, 512, 512, 512), INSIDE, Region(90, 80, 70, 60)):
            assert np.array_equal(slide.read(region, 0), crop(whole, region))


def test_a_batch_reads_a_few_regions_directly_and_many_by_chunks(
    path: Path, whole: Pixels, direct: list[Region]
) -> None:
    crowd = [(600 + 10 * n, 620 + 5 * n) for n in range(20)]
    places = [*crowd, (1500, 1100), (1510, 1110), (-50, -60), (1650, 30)]
    with open_compressed(path, device="cpu") as slide:
        batch = slide.read_batch(places, (80, 90))
    for pixels, (x, y) in zip(batch, places, strict=True):
        expected = np.empty_like(pixels)
        expected[...] = BACKGROUND
        region = Region(x, y, 80, 90)
        inside = region.intersect(Region(0, 0, *SIZE))
        expected[inside.within(region)] = crop(whole, inside)
        assert np.array_equal(pixels, expected)
    assert sorted((region.x, region.y) for region in direct) == [(1500, 1100), (1510, 1110), (1650, 30)]


@pytest.mark.slow
def test_a_floating_point_synthesis_is_never_read_directly(tmp_path: Path, direct: list[Region]) -> None:
    """Its pixels would depend on the region that was read."""
    source = ArraySlide(synthetic_slide(700, 600, seed=2))
    histocodec.encode(source, tmp_path / "a.zarr", model=str(tiny_model(tmp_path)), device="cpu", embed_model=True)
    with CompressedSlide(tmp_path / "a.zarr", device="cpu") as slide:
        slide.read(Region(100, 100, 60, 60), 0)
    assert direct == []


def test_direct_reads_find_damage(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "a.zarr"
    shutil.copytree(path, copy)
    (shard,) = (file for file in (copy / "latents/0/c").rglob("*") if file.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    failed = 0
    for region in (CORNERS, INSIDE, Region(600, 100, 99, 99), Region(1100, 100, 99, 99), Region(600, 1100, 99, 99)):
        with open_compressed(copy, device="cpu") as slide:
            try:
                slide.read(region, 0)
            except histocodec.FormatError as exc:
                failed += 1
                assert "a.zarr" in str(exc)
    assert failed


@pytest.mark.parametrize("region", [Region(512, 512, 512, 512), CORNERS])
def test_all_workers_decode_what_one_window_needs(
    path: Path, whole: Pixels, monkeypatch: pytest.MonkeyPatch, region: Region
) -> None:
    seen, plain = [], HyperChunkCodec.decode_used

    def noted(self: HyperChunkCodec, data: bytes, shape: tuple[int, ...], *dtype: np.dtype) -> np.ndarray:
        seen.append(threading.current_thread().name)
        time.sleep(0.02)  # long enough for another to take the next
        return plain(self, data, shape, *dtype)

    monkeypatch.setattr(HyperChunkCodec, "decode_used", noted)
    with open_compressed(path, device="cpu", workers=2) as slide:
        assert np.array_equal(slide.read(region, 0), crop(whole, region))
    assert len(set(seen)) == 2
