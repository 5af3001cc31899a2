"""`histocodec serve` over HTTP: what each address answers is what the slide's own methods give."""

import gzip
import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

import histocodec
from histocodec.cli.fidelity_map import STEPS
from histocodec.cli.viewer.app import application
from histocodec.cli.viewer.catalogue import Catalogue
from histocodec.cli.viewer.deepzoom import last_level
from histocodec.fidelity import psnr, squared_error
from histocodec.formats.decode.slide import CompressedSlide
from histocodec.slide import Pixels
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.slides import SIZE, encoded

testclient = pytest.importorskip("starlette.testclient", reason="the extra `serve` is not installed")

HERE = "http://127.0.0.1:8200"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Path:
    """Two containers, and the original of one of them in a folder beside."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "slides").mkdir()
    (folder / "originals").mkdir()
    pixels = synthetic_slide(*SIZE, seed=3)
    Image.fromarray(pixels).save(folder / "originals" / "one.png")
    with histocodec.open_slide(folder / "originals" / "one.png", mpp=0.5) as source:
        encoded(source, folder / "slides" / "one.hcz", tiny_file, embed_model=True)  # type: ignore[arg-type]
    small = ArraySlide(pixels[:300, :400], name="two")
    encoded(small, folder / "slides" / "two.hc.zarr", tiny_file, embed_model=True, overview=None)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator["testclient.TestClient"]:
    app = application(Catalogue([folder / "slides"], device="cpu"), original_dir=folder / "originals")
    with testclient.TestClient(app, base_url=HERE) as client:
        yield client


@pytest.fixture(scope="module")
def slide(folder: Path) -> Iterator[CompressedSlide]:
    with histocodec.open(folder / "slides" / "one.hcz", device="cpu") as slide:
        yield slide


def pixels_of(response: "testclient.httpx.Response") -> Pixels:
    assert response.status_code == 200, response.text
    with Image.open(io.BytesIO(response.content)) as image:
        return np.asarray(image.convert("RGB"))


def test_the_list_names_every_container_and_its_addresses(client: "testclient.TestClient") -> None:
    answer = client.get("/api/slides").json()
    assert [row["id"] for row in answer["slides"]] == ["one", "two"]
    assert (answer["total"], answer["next"]) == (2, None)
    one = answer["slides"][0]
    assert (one["width"], one["height"], one["mpp"]) == (*SIZE, [0.5, 0.5])
    assert one["original"]
    assert not answer["slides"][1]["original"]
    for address in ("page", "thumbnail", "deepzoom", "iiif"):
        assert client.get(one["links"][address]).status_code == 200
    assert client.get(one["links"]["ome_zarr"] + "/zarr.json").status_code == 200
    assert client.get(one["links"]["ome_zarr_0.4"] + "/.zattrs").status_code == 200


def test_a_list_comes_in_parts(client: "testclient.TestClient") -> None:
    first = client.get("/api/slides?limit=1").json()
    assert [row["id"] for row in first["slides"]] == ["one"]
    assert [row["id"] for row in client.get(first["next"]).json()["slides"]] == ["two"]


def test_no_answer_names_a_path(client: "testclient.TestClient", folder: Path) -> None:
    for address in ("/api/slides", "/api/slides/one", "/api/slides/two", "/iiif/one/info.json"):
        assert str(folder) not in client.get(address).text


def test_a_region_is_that_of_read_region(client: "testclient.TestClient", slide: CompressedSlide) -> None:
    for x, y, width, height, level in ((100, 50, 300, 200, 0), (400, 0, 60, 50, 1), (-20, 850, 100, 100, 0)):
        query = f"x={x}&y={y}&width={width}&height={height}&level={level}"
        response = client.get(f"/api/slides/one/region?{query}&format=png")
        with Image.open(io.BytesIO(response.content)) as image:
            found = np.asarray(image.convert("RGBA"))
        assert np.array_equal(found, np.asarray(slide.read_region((x, y), level, (width, height))))
        near = pixels_of(client.get(f"/api/slides/one/region?{query}&format=jpeg")).astype(int)
        assert np.abs(near - slide.read_array(x, y, width, height, level=level)).mean() < 4
        assert client.get(f"/api/slides/one/region?{query}&format=webp").headers["content-type"] == "image/webp"


def test_tiles_of_deepzoom_are_the_pixels_of_the_levels(
    client: "testclient.TestClient", slide: CompressedSlide
) -> None:
    root = ET.fromstring(client.get("/slides/one.dzi").content)
    size = root[0]
    assert (int(size.attrib["Width"]), int(size.attrib["Height"])) == SIZE
    side, last = int(root.attrib["TileSize"]), last_level(slide.levels[0])
    zoom = DeepZoomGenerator(slide, tile_size=side, overlap=int(root.attrib["Overlap"]))
    assert zoom.level_count == last + 1
    for column, row in np.ndindex(*zoom.level_tiles[last]):
        found = pixels_of(client.get(f"/slides/one_files/{last}/{column}_{row}.png"))
        assert np.array_equal(found, np.asarray(zoom.get_tile(last, (column, row)).convert("RGB")))
    # Level 1 has a quarter of the pixels across; the level of DeepZoom is the same, but for the part of a pixel.
    level = pixels_of(client.get(f"/slides/one_files/{last - 2}/0_0.png"))
    assert level.shape == (225, 325, 3)
    assert np.array_equal(level, slide.read(slide.levels[1].region, 1))
    for number in range(last):
        tile = pixels_of(client.get(f"/slides/one_files/{number}/0_0.jpeg"))
        width, height = (min(side, length) for length in zoom.level_dimensions[number])
        assert tile.shape == (height, width, 3)


def test_an_object_of_ome_zarr_is_that_of_the_view(client: "testclient.TestClient", folder: Path) -> None:
    import asyncio

    from zarr.core.buffer import default_buffer_prototype

    for prefix, version, keys in (
        ("/ome-zarr", "0.5", ("zarr.json", "0/zarr.json", "0/c/0/1/2", "1/c/0/0/0")),
        ("/ome-zarr-0.4", "0.4", (".zattrs", ".zgroup", "0/.zarray", "0/0/1/2")),
    ):
        view = histocodec.view(str(folder / "slides" / "one.hcz"), device="cpu", version=version)
        for key in keys:
            expected = asyncio.run(view.get(key, default_buffer_prototype()))
            assert client.get(f"{prefix}/one.ome.zarr/{key}").content == expected.to_bytes()
        assert client.get(f"{prefix}/one.ome.zarr/0/nothing").status_code == 404


def test_parts_of_a_chunk_are_answered(client: "testclient.TestClient") -> None:
    address = "/ome-zarr/one.ome.zarr/0/c/0/0/0"
    whole = client.get(address)
    assert whole.headers["accept-ranges"] == "bytes"
    size = len(whole.content)
    head = client.head(address)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(size), b"")
    for wanted, start, end in (("0-9", 0, 10), (f"{size - 5}-", size - 5, size), ("-7", size - 7, size)):
        part = client.get(address, headers={"Range": f"bytes={wanted}"})
        assert part.status_code == 206
        assert part.content == whole.content[start:end]
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    beyond = client.get(address, headers={"Range": f"bytes={size}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    changed = client.get(address, headers={"Range": "bytes=0-9", "If-Range": '"another"'})
    assert changed.status_code == 200


@pytest.mark.parametrize(
    "address",
    [
        "/", "/api", "/assets/slide.js", "/api/slides", "/api/slides/one", "/api/slides/one/fidelity", "/slides/one",
        "/slides/one.dzi", "/slides/one_files/9/0_0.jpeg", "/iiif/one/info.json", "/iiif/one/full/max/0/default.jpg",
        "/ome-zarr/one.ome.zarr/zarr.json", "/ome-zarr/one.ome.zarr/0/c/0/0/0", "/slides/one/fidelity_files/9/0_0.png",
        "/api/slides/one/region?x=0&y=0&width=9&height=9", "/api/slides/one/thumbnail", "/api/openapi.json",
    ],
)  # fmt: skip
def test_what_a_client_has_is_not_sent_again(client: "testclient.TestClient", address: str) -> None:
    first = client.get(address)
    assert first.status_code == 200, first.text
    again = client.get(address, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(address, headers={"If-None-Match": '"other"'}).status_code == 200
    assert client.head(address).status_code == 200
    assert first.headers["cache-control"] == "private, no-cache"


def test_what_is_asked_for_with_its_version_may_be_kept_for_ever(
    client: "testclient.TestClient", slide: CompressedSlide
) -> None:
    digest = slide.container.attributes.provenance.digest
    for version, kept in ((digest[:12], True), ("0" * 12, False), ("", False)):
        header = client.get(f"/slides/one_files/9/0_0.jpeg?v={version}").headers["cache-control"]
        assert ("immutable" in header) is kept


def test_a_container_that_was_replaced_is_served_anew(tmp_path: Path, folder: Path) -> None:
    target = tmp_path / "slide.hcz"
    target.write_bytes((folder / "slides" / "one.hcz").read_bytes())
    app = application(Catalogue([tmp_path], device="cpu"))
    with testclient.TestClient(app, base_url=HERE) as client:
        before = client.get("/slides/slide_files/9/0_0.png")
        histocodec_pack(folder / "slides" / "two.hc.zarr", target)
        after = client.get("/slides/slide_files/9/0_0.png", headers={"If-None-Match": before.headers["etag"]})
        assert after.status_code == 200
        assert after.content != before.content


def histocodec_pack(source: Path, target: Path) -> None:
    """Pack a container over another one."""
    from histocodec.cli.main import run

    assert run(["pack", str(source), str(target), "--overwrite"]) == 0


def test_text_is_compressed_for_those_who_take_it(client: "testclient.TestClient") -> None:
    plain = client.get("/api/openapi.json", headers={"Accept-Encoding": "identity"})
    packed = client.get("/api/openapi.json", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == plain.content  # the client has unpacked it
    assert int(packed.headers["content-length"]) < len(plain.content) / 2
    assert gzip.decompress(gzip.compress(plain.content)) == plain.content
    refused = client.get("/api/openapi.json", headers={"Accept-Encoding": "gzip;q=0"})
    assert "content-encoding" not in refused.headers


def test_the_fidelity_map_is_what_the_container_states(client: "testclient.TestClient", slide: CompressedSlide) -> None:
    facts = client.get("/api/slides/one/fidelity").json()
    stated = slide.container.psnr(0)
    assert (facts["rows"], facts["columns"], facts["chunk"]) == (*stated.shape, 512)
    assert np.allclose(np.array(facts["psnr"], float), stated, equal_nan=True)
    assert len(facts["scale"]) == len(STEPS) + 1
    tile = client.get(f"/slides/one/fidelity_files/{last_level(slide.levels[0])}/0_0.png")
    with Image.open(io.BytesIO(tile.content)) as image:
        rgba = np.asarray(image.convert("RGBA"))
    assert len({tuple(pixel) for pixel in rgba.reshape(-1, 4).tolist()}) == 1  # one chunk
    step = max((step for step in STEPS if step.decibels <= stated[0, 0]), key=lambda step: step.decibels)
    assert tuple(rgba[0, 0, :3]) == step.colour
    assert pixels_of(client.get("/api/slides/one/fidelity.png?size=300")).shape[1] > 300


def test_a_region_is_compared_with_the_original(
    client: "testclient.TestClient", slide: CompressedSlide, folder: Path
) -> None:
    with histocodec.open_slide(folder / "originals" / "one.png") as original:
        source = original.read(slide.levels[0].region, 0)
    decoded = slide.read(slide.levels[0].region, 0)
    answer = client.get("/api/slides/one/compare?x=100&y=200&width=300&height=150").json()
    a, b = decoded[200:350, 100:400], source[200:350, 100:400]
    assert answer["psnr"] == pytest.approx(psnr(squared_error(a, b), a.size))
    assert answer["largest_difference"] == np.abs(a.astype(int) - b).max()
    last = last_level(slide.levels[0])
    assert np.array_equal(pixels_of(client.get(f"/slides/one/original_files/{last}/0_0.png")), source[:512, :512])
    expected = (128 + 8 * (decoded[:512, :512].astype(int) - source[:512, :512])).clip(0, 255)
    assert np.array_equal(pixels_of(client.get(f"/slides/one/difference_files/{last}/0_0.png")), expected)
    assert client.get(f"/slides/one/fidelity_files/{last}/0_0.png?measure=measured").status_code == 200
    assert client.get("/api/slides/two/compare").status_code == 404


def test_a_slide_that_is_not_compressed_is_served_without_a_map(folder: Path) -> None:
    app = application(Catalogue([folder / "originals" / "one.png"]))
    with testclient.TestClient(app, base_url=HERE) as client:
        facts = client.get("/api/slides/one").json()
        assert (facts["compressed"], facts["map"]) == (False, False)
        assert client.get("/slides/one_files/11/0_0.png").status_code == 200
        assert client.get("/api/slides/one/fidelity").status_code == 404


def test_the_description_of_the_api_is_valid_and_complete(client: "testclient.TestClient") -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    document = client.get("/api/openapi.json").json()
    validator.validate(document)
    from histocodec.cli.viewer.app import ROUTES

    pages = ("/", "/api", "/api/openapi.json", "/favicon.ico", "/assets/{name}", "/slides/{id}", "/iiif/{id}")
    routes = {path.replace(":path", "") for path, _ in ROUTES} - set(pages)
    assert set(document["paths"]) == routes


def test_pages_have_no_script_or_style_of_their_own(client: "testclient.TestClient") -> None:
    for address in ("/", "/slides/one", "/api"):
        response = client.get(address)
        assert "'unsafe" not in response.headers["content-security-policy"]
        assert "<script>" not in response.text
        assert " style=" not in response.text
        assert "onclick" not in response.text
        assert "http://" not in response.text
        assert "https://" not in response.text  # works offline


def test_an_error_is_json_with_a_sentence(client: "testclient.TestClient") -> None:
    response = client.get("/api/slides/none/region?x=0&y=0&width=1&height=1")
    assert (response.status_code, list(json.loads(response.text))) == (404, ["error"])
    assert client.get("/nothing").json()["error"]
