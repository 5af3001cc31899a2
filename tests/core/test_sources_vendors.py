"""Vendors' files equal what OpenSlide shows of them, in whatever pieces they are read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import pytest

from histocodec.formats.decode.openslide_face import OpenSlideFace
from histocodec.geometry import Level, Region
from histocodec.slide import WHITE, Pixels, composited
from histocodec.sources import OpenSlideSlide, open_slide
from tests.support.vendors import (
    reduced,
    tissue,
    write_dicom,
    write_huron,
    write_leica,
    write_mrxs,
    write_philips,
    write_svs,
    write_trestle,
)

SECTION = tissue(2003, 1501)
ONE_AREA = [(tissue(1000, 700), 400, 600)]
TWO_AREAS = [*ONE_AREA, (tissue(803, 601, 1), 1302, 1399)]
# The second begins inside the rows of the first; the third inside its columns; the plane's size is odd.
THREE_AREAS = [(tissue(900, 700), 3, 5), (tissue(603, 401, 1), 1011, 333), (tissue(555, 444, 2), 777, 1001)]


def write_dicom_levels(path: Path) -> Path:
    write_dicom(path.with_name("b"), reduced(SECTION, 3.3), instance=2)
    return write_dicom(path, SECTION)


VENDORS: dict[str, tuple[str, str, Callable[[Path], Path]]] = {
    "svs": ("aperio", "a.svs", lambda path: write_svs(path, SECTION, steps=(4, 16))),
    "svs, empty tile of level 0": ("aperio", "a.svs", lambda path: write_svs(path, SECTION, missing={(0, 20)})),
    "svs, empty tile of level 1": ("aperio", "a.svs", lambda path: write_svs(path, SECTION, missing={(1, 3)})),
    "svs, empty tiles": (
        "aperio",
        "a.svs",
        lambda path: write_svs(path, SECTION, steps=(3.3, 7.1), missing={(0, 9), (1, 1), (2, 1)}),
    ),
    "leica, one area": ("leica", "a.scn", lambda path: write_leica(path, ONE_AREA)),
    "leica, two areas": ("leica", "a.scn", lambda path: write_leica(path, TWO_AREAS)),
    "leica, three areas": ("leica", "a.scn", lambda path: write_leica(path, THREE_AREAS, plane=(1777, 1511))),
    "philips": ("philips", "a.tiff", lambda path: write_philips(path, SECTION)),
    "trestle": ("trestle", "a.tif", lambda path: write_trestle(path, SECTION)),
    "trestle, odd steps": ("trestle", "a.tif", lambda path: write_trestle(path, SECTION, steps=(1.7, 3.9))),
    "huron": ("huron", "a.tif", lambda path: write_huron(path, SECTION, steps=(3.3,))),
    "dicom": ("dicom", "a.dcm", write_dicom_levels),
    "mrxs": ("mirax", "a.mrxs", lambda path: write_mrxs(path, SECTION[:1400, :1750], side=250, absent={(2, 1)})),
}


class Face(OpenSlideFace):
    """The levels of a slide, and no more."""

    def __init__(self, levels: tuple[Level, ...]) -> None:
        self.levels = levels

    @property
    def properties(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        pass


def openslides_view(path: Path, level: int, fill: tuple[int, int, int]) -> Pixels:
    with openslide.OpenSlide(path) as slide:
        image = slide.read_region((0, 0), level, slide.level_dimensions[level])
    return composited(np.asarray(image), fill)


@pytest.mark.parametrize("name", VENDORS)
def test_any_region_is_the_crop_of_openslides_whole_level(tmp_path: Path, name: str) -> None:
    vendor, file_name, write = VENDORS[name]
    path = write(tmp_path / file_name)
    rng = np.random.default_rng(0)
    with open_slide(path) as slide:
        assert isinstance(slide, OpenSlideSlide)
        assert slide.properties["openslide.vendor"] == vendor
        assert len(slide.levels) > 1
        for level, size in enumerate(slide.levels):
            expected = openslides_view(path, level, slide.background or WHITE)
            assert np.array_equal(slide.read(size.region, level), expected), f"level {level}"
            for _ in range(12):
                x, y = int(rng.integers(size.width)), int(rng.integers(size.height))
                width = int(rng.integers(1, min(700, size.width - x) + 1))
                height = int(rng.integers(1, min(700, size.height - y) + 1))
                region = Region(x, y, width, height)
                part = region.within(size.region)
                assert np.array_equal(slide.read(region, level), expected[part]), f"level {level}, {region}"


@pytest.mark.parametrize("name", VENDORS)
def test_the_downsamples_are_the_vendors(tmp_path: Path, name: str) -> None:
    _, file_name, write = VENDORS[name]
    path = write(tmp_path / file_name)
    with open_slide(path) as slide, openslide.OpenSlide(path) as reference:
        assert tuple(level.downsample for level in slide.levels) == reference.level_downsamples
        face = Face(slide.levels)
        downsamples = [*np.linspace(0.1, 20, 200), *reference.level_downsamples]
        near = [np.nextafter(d, to) for d in reference.level_downsamples for to in (0, 100)]
        for downsample in (*downsamples, *near):
            best = reference.get_best_level_for_downsample(downsample)
            assert face.get_best_level_for_downsample(downsample) == best, downsample
