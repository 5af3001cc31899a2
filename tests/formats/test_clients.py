"""Programs that read slides take containers: napari and large_image as they find their plugins, wsidata by its reader.

Where a program is not installed, its tests are skipped.
"""

import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from histocodec.errors import UsageError
from histocodec.formats.decode.slide import CompressedSlide
from tests.support.exports import IMAGES, MPP, POWER, PROFILE, reopened, rich_container
from tests.support.slides import whole

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Path:
    return rich_container(tmp_path_factory.mktemp("clients") / "rich.hcz", tiny_file)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Path:
    """A folder without a profile, so that large_image shows the very pixels."""
    return rich_container(tmp_path_factory.mktemp("plain") / "plain.hc.zarr", tiny_file, icc=False)


@pytest.fixture(scope="module")
def slide(container: Path) -> Iterator[CompressedSlide]:
    with reopened(container) as slide:
        yield slide


@pytest.mark.parametrize("group", ["napari.manifest", "large_image.source"])
def test_every_entry_point_leads_somewhere(group: str) -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][group]
    module, _, name = points["histocodec"].partition(":")
    if group == "napari.manifest":
        assert (Path(import_module(module).__file__ or "").parent / name).is_file()
    else:
        pytest.importorskip("large_image")
        assert getattr(import_module(module), name)


# napari.


@pytest.fixture
def manager() -> Iterator[Any]:
    """npe2, which finds the reader by its manifest. It is not among the test dependencies: its plugin for pytest warns
    when it is imported, and warnings are errors here. With it: PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 pytest …"""
    npe2 = pytest.importorskip("npe2")
    manifest = npe2.PluginManifest.from_file(ROOT / "formats" / "clients" / "napari.yaml")
    manager = npe2.PluginManager.instance()
    if "histocodec" in manager:
        manager.unregister("histocodec")
    manager.register(manifest)
    yield manager
    manager.unregister("histocodec")


@pytest.mark.parametrize("name", ["slide.hcz", "slide.hc.zarr", "SLIDE.HCZ"])
def test_napari_asks_the_reader_for_files_and_folders(manager: Any, name: str) -> None:
    assert [reader.plugin_name for reader in manager.iter_compatible_readers(name.lower())] == ["histocodec"]
    assert list(manager.iter_compatible_readers("slide.svs")) == []


def test_napari_gets_a_lazy_pyramid_in_microns_with_the_very_pixels(
    manager: Any, container: Path, slide: CompressedSlide
) -> None:
    dask = pytest.importorskip("dask.array")
    from npe2.io_utils import read

    layers = read([str(container)], stack=False)
    ((levels, arguments, kind),) = layers
    assert (kind, arguments["rgb"], arguments["multiscale"]) == ("image", True, True)
    assert arguments["scale"] == (MPP[1], MPP[0])  # of y and x
    assert arguments["name"] == "rich.hcz"
    for number, level in enumerate(levels):
        assert isinstance(level, dask.Array)
        assert np.array_equal(level.compute(), whole(slide, number))
    associated = arguments["metadata"]["associated"]
    assert {name: image.shape[1::-1] for name, image in associated.items()} == IMAGES


def test_napari_goes_on_to_other_readers_for_what_is_no_container(tmp_path: Path, container: Path) -> None:
    from histocodec.formats.clients.napari_reader import get_reader

    (tmp_path / "other.hcz").write_bytes(b"PK\x05\x06" + bytes(18))
    assert get_reader(str(tmp_path / "other.hcz")) is None
    assert get_reader([str(container), str(tmp_path / "other.hcz")]) is None
    assert get_reader([]) is None
    assert get_reader([str(container), str(container)]) is not None


# large_image.


@pytest.fixture
def source(container: Path) -> Any:
    pytest.importorskip("large_image")
    from histocodec.formats.clients.large_image_source import HistocodecFileTileSource

    return HistocodecFileTileSource(str(container))


def test_large_image_knows_size_resolution_objective_profile_and_images(source: Any, slide: CompressedSlide) -> None:
    told = source.getMetadata()
    assert (told["sizeX"], told["sizeY"], told["tileWidth"], told["levels"]) == (1300, 900, 256, 4)
    assert (told["mm_x"], told["mm_y"]) == pytest.approx((MPP[0] / 1000, MPP[1] / 1000))
    assert told["magnification"] == POWER
    assert source.getAssociatedImagesList() == sorted(IMAGES)
    data, _ = source.getAssociatedImage("label", encoding="PNG")
    assert data
    assert source.getICCProfiles(0) is not None
    assert source._iccprofiles == [PROFILE]
    assert source.getInternalMetadata()["histocodec"]["model"] == slide.model_id


def test_large_image_shows_the_very_pixels_of_level_0(plain: Path) -> None:
    pytest.importorskip("large_image")
    from histocodec.formats.clients.large_image_source import HistocodecFileTileSource

    with reopened(plain) as slide:
        expected = whole(slide, 0)
    source = HistocodecFileTileSource(str(plain))
    region, _ = source.getRegion(format="numpy")
    assert np.array_equal(region[..., :3], expected)


@pytest.mark.parametrize("level", range(4))
def test_large_image_tiles_of_every_level_lie_where_they_should(plain: Path, level: int) -> None:
    pytest.importorskip("large_image")
    from histocodec.formats.clients.large_image_source import HistocodecFileTileSource

    source = HistocodecFileTileSource(str(plain))
    scale = 2 ** (source.levels - 1 - level)
    with reopened(plain) as slide:
        full = whole(slide, 0).astype(float)
    tile = np.asarray(source.getTile(0, 0, level, numpyAllowed="always"))[..., :3].astype(float)
    rows, columns = min(256, 900 // scale), min(256, 1300 // scale)
    means = full[: rows * scale, : columns * scale].reshape(rows, scale, columns, scale, 3).mean((1, 3))
    here = np.abs(tile[:rows, :columns] - means).mean()
    shifted = np.abs(tile[: rows - 2, : columns - 2] - means[2:, 2:]).mean()
    assert here < 10
    assert here < 0.7 * shifted


def test_large_image_is_told_of_what_is_no_container(tmp_path: Path) -> None:
    exceptions = pytest.importorskip("large_image.exceptions")
    from histocodec.formats.clients.large_image_source import HistocodecFileTileSource, canRead

    (tmp_path / "a.hcz").write_bytes(b"nothing")
    with pytest.raises(exceptions.TileSourceError, match="no container"):
        HistocodecFileTileSource(str(tmp_path / "a.hcz"))
    with pytest.raises(exceptions.TileSourceFileNotFoundError):
        HistocodecFileTileSource(str(tmp_path / "b.hcz"))
    assert not canRead(str(tmp_path / "a.hcz"))


# wsidata.


def test_wsidata_reads_regions_and_keeps_its_store_beside_the_slide(
    tmp_path: Path, plain: Path, tiny_file: Path
) -> None:
    pytest.importorskip("wsidata")
    from histocodec.formats.clients.wsidata_reader import open_wsi

    container = rich_container(tmp_path / "a.hc.zarr", tiny_file)
    files = sorted(path for path in container.rglob("*") if path.is_file())
    wsi = open_wsi(container)
    assert wsi.properties.mpp == pytest.approx(MPP[1])
    assert wsi.properties.magnification == POWER
    with reopened(container) as slide:
        assert np.array_equal(wsi.read_region(100, 60, 70, 50, level=0), slide.read_array((100, 60), 0, (70, 50)))
    wsi.write()
    assert (tmp_path / "a.wsidata.zarr").is_dir()
    assert sorted(path for path in container.rglob("*") if path.is_file()) == files
    with pytest.raises(UsageError, match="a store would overwrite"):
        open_wsi(container, store=container)


@pytest.mark.parametrize("name", ["a.hcz", "a.hc.zarr", "a.zarr", "A.HC.ZARR"])
def test_the_store_of_wsidata_has_a_name_of_its_own(name: str) -> None:
    pytest.importorskip("wsidata")
    from histocodec.formats.clients.wsidata_reader import store_of

    assert store_of(f"slides/{name}") == Path("slides") / f"{name[0]}.wsidata.zarr"
