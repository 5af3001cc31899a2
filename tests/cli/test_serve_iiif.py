"""IIIF Image API 3, level 2: https://iiif.io/api/image/3.0/ and its compliance document."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from histocodec.cli.viewer import iiif
from histocodec.cli.viewer.app import application
from histocodec.cli.viewer.catalogue import Catalogue, Entry, Opened
from histocodec.cli.viewer.limits import RefusedError
from histocodec.geometry import Level
from histocodec.slide import Pixels
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide

testclient = pytest.importorskip("starlette.testclient", reason="the extra `serve` is not installed")

SIZE = (601, 401)


class One(Catalogue):
    """A catalogue of one slide in memory."""

    def __init__(self, pixels: Pixels) -> None:
        super().__init__([])
        slide = ArraySlide(pixels)
        entry = Entry("one", "one", "memory://one")
        self._entries["one"] = self._by_place["one"] = entry
        self._open["one"] = "", Opened(entry, slide, "0" * 64)


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return synthetic_slide(*SIZE, seed=2)


@pytest.fixture(scope="module")
def client(pixels: Pixels) -> Iterator["testclient.TestClient"]:
    with testclient.TestClient(application(One(pixels), origins=("*",)), base_url="http://127.0.0.1:8200") as client:
        yield client


def image(client: "testclient.TestClient", words: str) -> Pixels:
    response = client.get(f"/iiif/one/{words}")
    assert response.status_code == 200, response.text
    with Image.open(io.BytesIO(response.content)) as opened:
        return np.asarray(opened)


def test_the_description_says_what_the_standard_requires(client: "testclient.TestClient") -> None:
    response = client.get("/iiif/one/info.json")
    described = response.json()
    assert response.headers["content-type"].startswith("application/ld+json")
    assert described["@context"] == "http://iiif.io/api/image/3/context.json"
    assert described["id"] == "http://127.0.0.1:8200/iiif/one"
    assert described["type"] == "ImageService3"
    assert described["protocol"] == "http://iiif.io/api/image"
    assert described["profile"] == "level2"
    assert (described["width"], described["height"]) == SIZE
    for size in described["sizes"]:
        assert image(client, f"full/{size['width']},{size['height']}/0/default.jpg").shape[:2] == (
            size["height"],
            size["width"],
        )
    assert response.headers["access-control-allow-origin"] == "*"
    assert 'rel="profile"' in response.headers["link"]
    plain = client.get("/iiif/one/info.json", headers={"Accept": "application/json"})
    assert plain.headers["content-type"].startswith("application/json")


def test_the_base_leads_to_the_description(client: "testclient.TestClient") -> None:
    response = client.get("/iiif/one", follow_redirects=False)
    assert (response.status_code, response.headers["location"]) == (303, "http://127.0.0.1:8200/iiif/one/info.json")


@pytest.mark.parametrize(
    ("region", "box"),
    [
        ("full", (0, 0, 601, 401)),
        ("square", (100, 0, 501, 401)),
        ("10,20,300,200", (10, 20, 310, 220)),
        ("500,300,1000,1000", (500, 300, 601, 401)),  # cut at the edge
        ("pct:25,50,50,25", (150, 200, 451, 301)),
        ("pct:99.9,99.9,50,50", (600, 401, 601, 401)),
    ],
)
def test_a_region_is_the_part_that_it_names(
    client: "testclient.TestClient", pixels: Pixels, region: str, box: tuple[int, int, int, int]
) -> None:
    left, top, right, bottom = box
    if bottom == top:
        assert client.get(f"/iiif/one/{region}/max/0/default.png").status_code == 400
        return
    assert np.array_equal(image(client, f"{region}/max/0/default.png"), pixels[top:bottom, left:right])


@pytest.mark.parametrize(
    ("size", "width", "height"),
    [
        ("max", 601, 401),
        ("^max", None, None),
        ("300,", 300, 200),
        (",200", 300, 200),
        ("pct:50", 300, 200),
        ("100,300", 100, 300),
        ("!300,300", 300, 200),
        ("!1000,1000", 601, 401),
        ("^!1202,5000", 1202, 802),
        ("^1202,", 1202, 802),
        ("^pct:200", 1202, 802),
        ("^700,100", 700, 100),
        ("1,", 1, 1),
    ],
)
def test_a_size_is_what_it_names(client: "testclient.TestClient", size: str, width: int | None, height: int) -> None:
    found = image(client, f"full/{size}/0/default.jpg")
    if width is None:  # as large as the limits allow
        described = client.get("/iiif/one/info.json").json()
        assert found.shape[0] * found.shape[1] <= described["maxArea"]
        assert found.shape[0] * found.shape[1] > 0.99 * described["maxArea"]
    else:
        assert found.shape == (height, width, 3)


@pytest.mark.parametrize(
    ("rotation", "turned"),
    [
        ("0", lambda p: p),
        ("90", lambda p: np.rot90(p, -1)),
        ("180", lambda p: np.rot90(p, 2)),
        ("270", lambda p: np.rot90(p, 1)),
        ("360", lambda p: p),
        ("90.0", lambda p: np.rot90(p, -1)),
        ("!0", lambda p: p[:, ::-1]),
        ("!90", lambda p: np.rot90(p[:, ::-1], -1)),
    ],
)
def test_a_rotation_is_clockwise_after_mirroring(
    client: "testclient.TestClient", pixels: Pixels, rotation: str, turned: object
) -> None:
    found = image(client, f"10,20,60,40/max/{rotation}/default.png")
    assert np.array_equal(found, turned(pixels[20:60, 10:70]))  # type: ignore[operator]  # a function of pixels


def test_qualities_and_formats_are_what_they_are_called(client: "testclient.TestClient", pixels: Pixels) -> None:
    part = pixels[20:60, 10:70]
    assert np.array_equal(image(client, "10,20,60,40/max/0/color.png"), part)
    grey = image(client, "10,20,60,40/max/0/gray.png")
    assert grey.shape == (40, 60)
    assert np.abs(grey.astype(float) - part @ np.array([0.299, 0.587, 0.114])).max() <= 0.51
    assert set(np.unique(image(client, "10,20,60,40/max/0/bitonal.png"))) <= {0, 255}
    for suffix, media in (("jpg", "image/jpeg"), ("png", "image/png"), ("webp", "image/webp")):
        response = client.get(f"/iiif/one/full/100,/0/default.{suffix}")
        assert response.headers["content-type"] == media


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("0,0,0,10/max/0/default.jpg", 400),
        ("700,0,10,10/max/0/default.jpg", 400),
        ("-1,0,10,10/max/0/default.jpg", 400),
        ("0,0,10/max/0/default.jpg", 400),
        ("whole/max/0/default.jpg", 400),
        ("pct:0,0,0,10/max/0/default.jpg", 400),
        ("0.5,0,10,10/max/0/default.jpg", 400),
        ("full/0,/0/default.jpg", 400),
        ("full/,0/0/default.jpg", 400),
        ("full/,/0/default.jpg", 400),
        ("full/700,/0/default.jpg", 400),
        ("full/pct:101/0/default.jpg", 400),
        ("full/pct:0/0/default.jpg", 400),
        ("full/full/0/default.jpg", 400),
        ("full/!10,/0/default.jpg", 400),
        ("full/^999999,999999/0/default.jpg", 400),
        ("full/max/361/default.jpg", 400),
        ("full/max/-90/default.jpg", 400),
        ("full/max/!/default.jpg", 400),
        ("full/max/22.5/default.jpg", 501),
        ("full/max/0/native.jpg", 400),
        ("full/max/0/default.tif", 400),
        ("full/max/0/default", 404),
        ("full/max/0", 404),
        ("full/max/nan/default.jpg", 400),
    ],
)
def test_what_has_no_meaning_is_refused(client: "testclient.TestClient", words: str, status: int) -> None:
    assert client.get(f"/iiif/one/{words}").status_code == status


def test_an_image_that_is_not_there_is_not_found(client: "testclient.TestClient") -> None:
    assert client.get("/iiif/none/info.json").status_code == 404
    assert client.get("/iiif/none/full/max/0/default.jpg").status_code == 404


def test_words_may_be_escaped(client: "testclient.TestClient") -> None:
    plain = client.get("/iiif/one/pct:10,10,20,20/^100,/!90/default.png")
    escaped = client.get("/iiif/one/pct%3A10%2C10%2C20%2C20/%5E100%2C/%2190/default.png")
    assert plain.status_code == escaped.status_code == 200
    assert plain.content == escaped.content


def test_the_canonical_address_gives_the_same_image(client: "testclient.TestClient") -> None:
    for words in (
        "full/300,/0/default.jpg",
        "pct:0,0,100,100/max/360/default.jpg",
        "0,0,100,90/^!300,300/!90/gray.png",
    ):
        response = client.get(f"/iiif/one/{words}")
        link = next(part for part in response.headers["link"].split(", <") if "canonical" in part)
        canonical = link.split(">")[0].lstrip("<")
        assert client.get(canonical).content == response.content


def test_the_largest_answer_of_a_large_slide_is_within_the_limits() -> None:
    full = Level(200_000, 150_000, 1.0)
    wanted = iiif.parsed(full, "full", "max", "0", "default", "jpg")
    assert wanted.size[0] * wanted.size[1] <= iiif.SCALED_PIXELS
    assert abs(wanted.size[0] / wanted.size[1] - 4 / 3) < 0.01
    with pytest.raises(RefusedError):
        iiif.parsed(full, "full", "20000,15000", "0", "default", "jpg")
