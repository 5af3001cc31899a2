"""`info --map`: each chunk has the colour of its PSNR; what is lossless or left out can be told from the rest."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import histocodec
from histocodec.cli.fidelity_map import (
    LOSSLESS_STEP,
    MEASURES,
    STEPS,
    TINT,
    Measure,
    chunk_colours,
    colours,
    decibels,
    fidelity_map,
)
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


def tinted(colour: tuple[int, ...], below: tuple[int, ...]) -> tuple[int, ...]:
    """A colour that lies half transparent over another one."""
    return tuple(round(TINT * a + (1 - TINT) * b) for a, b in zip(colour, below, strict=True))


@pytest.mark.parametrize("measure", MEASURES)
def test_the_map_shows_what_the_container_says(container: Path, measure: Measure) -> None:
    opened = open_container(container)
    tiles, picture = opened.tiles(0), fidelity_map(opened, measure=measure)
    assert set(tiles.ravel()) == {BACKGROUND, CODED, LOSSLESS}
    expected = chunk_colours(tiles, decibels(opened, 0, measure))
    for row, column in np.ndindex(*tiles.shape):
        colour = tinted(tuple(expected[row, column, :3].tolist()), BACKGROUND_COLOUR)
        shown = np.array(middle(picture, row, column))
        if tiles[row, column] == BACKGROUND:
            assert tuple(shown) == BACKGROUND_COLOUR
        else:
            assert np.abs(shown - colour).max() <= 1
    assert np.abs(np.array(middle(picture, 0, 3)) - tinted(LOSSLESS_STEP.colour, BACKGROUND_COLOUR)).max() <= 1


def test_the_picture_shows_through_the_map(container: Path) -> None:
    opened = open_container(container)
    dark, light = (fidelity_map(opened, np.full((30, 60, 3), value, np.uint8)) for value in (0, 200))
    difference = (
        light[MARGIN : MARGIN + 600, MARGIN : MARGIN + 1200].astype(int)
        - dark[MARGIN : MARGIN + 600, MARGIN : MARGIN + 1200]
    )
    assert difference.min() >= 99
    assert np.array_equal(light[-20:], dark[-20:])  # the legend


def test_the_same_error_has_the_same_colour_on_every_slide() -> None:
    values = np.array([[-5.0, 20.0, 25.99], [26.0, 37.9, 46.0], [200.0, np.inf, np.nan]], np.float32)
    found = colours(values)
    for place, value in np.ndenumerate(values):
        if np.isfinite(value):
            step = max((step for step in STEPS if step.decibels <= value), key=lambda step: step.decibels)
            assert tuple(found[place]) == step.colour
    assert tuple(found[2, 1]) == LOSSLESS_STEP.colour
    assert tuple(found[2, 2]) not in {step.colour for step in (*STEPS, LOSSLESS_STEP)}


def test_the_worst_block_is_never_better_than_its_chunk(container: Path) -> None:
    opened = open_container(container)
    coded = opened.tiles(0) == CODED
    assert (decibels(opened, 0, "block")[coded] <= decibels(opened, 0, "psnr")[coded] + 1e-3).all()


def test_the_steps_differ_from_each_other_and_from_no_colour() -> None:
    for number, step in enumerate((*STEPS, LOSSLESS_STEP)):
        for other in (*STEPS, LOSSLESS_STEP)[:number]:
            assert np.abs(np.subtract(step.colour, other.colour)).max() > 50


def test_a_slide_of_background_alone_has_a_map_too(tmp_path: Path, tiny_file: Path) -> None:
    slide = ArraySlide(np.full((40, 900, 3), BACKGROUND_COLOUR, np.uint8), background=BACKGROUND_COLOUR)
    histocodec.encode(slide, tmp_path / "a.zarr", model=str(tiny_file), device="cpu", overview=None)
    picture = fidelity_map(open_container(tmp_path / "a.zarr"))
    assert tuple(picture[MARGIN + 20, MARGIN + 600]) == BACKGROUND_COLOUR


def test_info_writes_the_map_over_the_slide_beside_its_facts(
    container: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["info", str(container), "--map", str(tmp_path / "map.png"), "--json"]) == 0
    assert '"width": 2048' in capsys.readouterr().out
    with histocodec.open(container, device="cpu") as slide:
        below = np.asarray(slide.get_thumbnail((1200, 1200)).convert("RGB"))
    with Image.open(tmp_path / "map.png") as picture:
        assert np.array_equal(np.asarray(picture), fidelity_map(open_container(container), below))
    again = tmp_path / "block.png"
    assert run(["info", str(container), "--map", str(again), "--map-of", "block"]) == 0
    with Image.open(again) as picture:
        assert np.array_equal(np.asarray(picture), fidelity_map(open_container(container), below, measure="block"))


def test_a_map_is_drawn_without_a_picture_where_the_model_is_missing(
    tmp_path: Path, tiny_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ArraySlide(synthetic_slide(600, 500, seed=1))
    histocodec.encode(source, tmp_path / "a.hcz", model=str(tiny_file), device="cpu", overview=None)
    assert run(["info", str(tmp_path / "a.hcz"), "--map", str(tmp_path / "map.png")]) == 0
    assert "without the slide beneath" in capsys.readouterr().err
    assert (tmp_path / "map.png").exists()


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
