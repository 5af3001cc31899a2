"""`info --map`: each chunk has the colour of its PSNR; what is lossless or left out can be told from the rest."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import histocodec
from histocodec.cli.fidelity_map import LOSSLESS_COLOUR, SCALE, Range, chunk_colours, fidelity_map
from histocodec.cli.main import run
from histocodec.formats.container.read import open_container
from histocodec.formats.container.states import BACKGROUND, CODED, LOSSLESS
from histocodec.picture import MARGIN
from histocodec.slide import Pixels
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide

BACKGROUND_COLOUR = (238, 238, 238)
SIZE = (2048, 1024)  # 4 x 2 chunks, of 300 pixels each in the map of 1200


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Path:
    """Background on the left, noise that must be lossless in the upper right corner, tissue between."""
    pixels = synthetic_slide(2 * SIZE[0], SIZE[1], seed=1)[:, 1024 : 1024 + SIZE[0]].copy()
    pixels[:, :512] = BACKGROUND_COLOUR
    pixels[:512, 1536:] = np.random.default_rng(0).integers(0, 256, (512, 512, 3))
    path = tmp_path_factory.mktemp("map") / "a.zarr"
    source = ArraySlide(pixels, background=BACKGROUND_COLOUR)
    histocodec.encode(
        source, path, model=str(tiny_file), device="cpu", min_psnr=20.0, levels=(0,), embed_model=True, overview=None
    )
    return path


def middle(picture: Pixels, row: int, column: int) -> tuple[int, ...]:
    return tuple(int(v) for v in picture[MARGIN + 300 * row + 150, MARGIN + 300 * column + 150])


def test_the_map_shows_what_the_container_says(container: Path) -> None:
    opened = open_container(container)
    tiles, psnr, picture = opened.tiles(0), opened.psnr(0), fidelity_map(opened)
    assert set(tiles.ravel()) == {BACKGROUND, CODED, LOSSLESS}
    assert opened.overview() is None  # so colours are pure
    expected = chunk_colours(tiles, psnr, Range.of(psnr))
    for row, column in np.ndindex(*tiles.shape):
        colour = BACKGROUND_COLOUR if tiles[row, column] == BACKGROUND else tuple(expected[row, column].tolist())
        assert middle(picture, row, column) == colour
    assert middle(picture, 0, 3) == LOSSLESS_COLOUR


def test_the_scale_runs_from_the_worst_to_the_best_in_whole_decibels() -> None:
    psnr = np.array([[np.nan, 24.3], [31.9, np.inf]], np.float32)
    span = Range.of(psnr)
    assert (span.low, span.high) == (24, 32)
    assert span.colours(np.array([0.0, 24.0, 32.0, 99.0])).tolist() == SCALE[[0, 0, -1, -1]].tolist()


@pytest.mark.parametrize("lowest", [0.0, 31.5, 3e38])
def test_a_map_with_an_absurd_psnr_has_a_scale_too(lowest: float) -> None:
    psnr = np.array([[lowest, 3e38]], np.float32)
    span = Range.of(psnr)
    assert 0 <= span.low < span.high == 200
    assert chunk_colours(np.full((1, 2), CODED, np.uint8), psnr, span)[0, 1].tolist() == SCALE[-1].tolist()


def test_what_is_lossless_or_left_out_has_no_colour_of_the_scale() -> None:
    for colour in (LOSSLESS_COLOUR, (255, 255, 255)):
        scale = Range(0, 100).colours(np.linspace(0, 100, 500)).astype(int)
        assert np.abs(scale - colour).max(axis=1).min() > 50


def test_a_slide_of_background_alone_has_a_map_too(tmp_path: Path, tiny_file: Path) -> None:
    slide = ArraySlide(np.full((40, 900, 3), BACKGROUND_COLOUR, np.uint8), background=BACKGROUND_COLOUR)
    histocodec.encode(slide, tmp_path / "a.zarr", model=str(tiny_file), device="cpu", overview=None)
    picture = fidelity_map(open_container(tmp_path / "a.zarr"))
    assert tuple(picture[MARGIN + 20, MARGIN + 600]) == BACKGROUND_COLOUR


def test_info_writes_the_map_beside_its_facts(
    container: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["info", str(container), "--map", str(tmp_path / "map.png"), "--json"]) == 0
    assert '"width": 2048' in capsys.readouterr().out
    with Image.open(tmp_path / "map.png") as picture:
        assert np.array_equal(np.asarray(picture), fidelity_map(open_container(container)))


def test_a_map_is_not_written_over_another_file(
    container: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "map.png"
    picture.write_bytes(b"mine")
    assert run(["info", str(container), "--map", str(picture)]) == 1
    assert "exists already; --overwrite replaces it" in capsys.readouterr().err
    assert picture.read_bytes() == b"mine"
    assert run(["info", str(container), "--map", str(picture), "--overwrite"]) == 0
    assert picture.read_bytes() != b"mine"


def test_a_map_of_another_kind_or_of_a_plain_slide_is_a_usage_error(
    container: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(tmp_path / "a.png")
    for source, picture, named in ((container, "map.jpg", ".png"), (tmp_path / "a.png", "map.png", "not a container")):
        assert run(["info", str(source), "--map", str(tmp_path / picture)]) == 2
        assert named in capsys.readouterr().err
        assert not (tmp_path / picture).exists()
