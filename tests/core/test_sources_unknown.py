"""A resolution or an objective power that cannot be is not known: said once, and never a refusal."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from histocodec.errors import UsageError
from histocodec.slide import notes_of
from histocodec.sources import ArraySlide, open_slide, with_pyramid
from tests.support.pictures import picture
from tests.support.vendors import tissue, write_leica, write_mrxs, write_svs, write_trestle

SECTION = tissue(600, 400)
POWERS = ("0", "-20", "nan", "inf", "1e9", "twenty")


def ome_tiff(path: Path, power: str, size: str) -> Path:
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Instrument ID="Instrument:0"><Objective ID="Objective:0" NominalMagnification="{power}"/></Instrument>'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" Type="uint8" SizeX="600" SizeY="400" SizeC="3" SizeZ="1" SizeT="1" '
        f'DimensionOrder="XYCZT" PhysicalSizeX="{size}" PhysicalSizeY="{size}">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData/></Pixels></Image></OME>'
    )
    tifffile.imwrite(path, SECTION, photometric="rgb", description=xml, metadata=None)
    return path


@pytest.mark.parametrize("power", POWERS)
def test_a_power_that_is_none_is_not_known(tmp_path: Path, power: str) -> None:
    write_svs(tmp_path / "a.svs", SECTION, steps=(), power=power)
    write_leica(tmp_path / "a.scn", [(SECTION, 40, 50)], plane=(700, 500), power=power)
    write_trestle(tmp_path / "trestle.tif", SECTION, steps=(2,), power=power)
    write_mrxs(tmp_path / "a.mrxs", SECTION, levels=1, power=power)
    ome_tiff(tmp_path / "a.ome.tif", power, "0.25")
    for name in ("a.svs", "a.scn", "trestle.tif", "a.mrxs", "a.ome.tif"):
        with open_slide(tmp_path / name) as slide:
            assert slide.objective_power is None, name
            assert slide.mpp is not None, name
            assert sum("objective power" in note for note in notes_of(with_pyramid(slide))) == 1, name
            assert "openslide.objective-power" not in slide.properties


@pytest.mark.parametrize("mpp", ["0", "-0.25", "nan", "inf", "1e-7", "1e9", "quarter"])
def test_a_resolution_that_is_none_is_not_known(tmp_path: Path, mpp: str) -> None:
    write_svs(tmp_path / "a.svs", SECTION, steps=(), mpp=mpp)
    ome_tiff(tmp_path / "a.ome.tif", "20", mpp)
    ome_zarr(tmp_path / "a.ome.zarr", float(mpp) if mpp != "quarter" else mpp)
    for name in ("a.svs", "a.ome.tif", "a.ome.zarr"):
        with open_slide(tmp_path / name) as slide:
            assert slide.mpp is None, name
            assert sum("microns per pixel" in note for note in notes_of(slide)) == 1, name
            assert "openslide.mpp-x" not in slide.properties
        with open_slide(tmp_path / name, mpp=0.5) as slide:
            assert slide.mpp == (0.5, 0.5)


def ome_zarr(path: Path, size: Any) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=3)
    array = group.create_array("0", shape=(90, 130, 3), dtype="uint8", chunks=(64, 64, 3))
    array[:] = picture()
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    axes.append({"name": "c", "type": "channel"})
    scale = [{"type": "scale", "scale": [size, size, 1]}]
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}],
    }


def test_a_resolution_that_a_user_gives_is_refused_instead(tmp_path: Path) -> None:
    for mpp in (0, -1, float("nan"), float("inf"), 1e-7, 1e7):
        with pytest.raises(UsageError, match="microns per pixel"):
            ArraySlide(np.zeros((5, 5, 3), np.uint8), mpp=mpp)


def test_what_is_known_needs_no_note(tmp_path: Path) -> None:
    with open_slide(write_svs(tmp_path / "a.svs", SECTION, steps=())) as slide:
        assert (slide.objective_power, slide.mpp, notes_of(slide)) == (20, (0.25, 0.25), ())
