"""The page of `histocodec serve` in a real browser: Debian's Chromium, driven by Playwright.

Nothing is installed here: without a browser or OpenSeadragon the tests are skipped, and say so. HISTOCODEC_CHROMIUM
names another browser.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

import histocodec
from histocodec.cli.viewer import assets
from histocodec.cli.viewer.app import application
from histocodec.cli.viewer.catalogue import Catalogue
from histocodec.sources.synthetic import synthetic_slide
from tests.support.servers import serving_app
from tests.support.slides import encoded

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZE = (2400, 1700)
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
SECONDS = 60.0  # that something may take on a busy machine
LOADED = """[...Array(osd.world.getItemCount()).keys()].every((number) => {
  const item = osd.world.getItemAt(number);
  return item.getOpacity() === 0 || item.getFullyLoaded();
})"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "originals").mkdir()
    Image.fromarray(synthetic_slide(*SIZE, seed=3)).save(folder / "originals" / "one.png")
    with histocodec.open_slide(folder / "originals" / "one.png", mpp=0.5) as source:
        encoded(source, folder / "one.hcz", tiny_file, embed_model=True)  # type: ignore[arg-type]  # a Slide will do
    app = application(Catalogue([folder], device="cpu"), original_dir=folder / "originals")
    with serving_app(app) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = os.environ.get("HISTOCODEC_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("there is no Chromium; apt-get install chromium brings Debian's")
    if not assets.present():
        pytest.skip("OpenSeadragon is not installed; `python -m histocodec.cli.viewer.assets` has npm fetch it")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "Browser") -> Iterator["Page"]:
    """A page that must not complain: no error of a script, nothing that the Content-Security-Policy refuses."""
    context = browser.new_context(viewport={"width": 1366, "height": 768}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(1000 * SECONDS)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    foreign: list[str] = []
    page.on("request", lambda request: foreign.append(request.url) if "127.0.0.1" not in request.url else None)
    yield page
    context.close()
    assert not complaints
    assert not [url for url in foreign if not url.startswith(("data:", "blob:"))]


def until(page: "Page", true: str) -> None:
    """Wait until an expression is true. (Playwright's own way evaluates text in the page, which its policy refuses.)"""
    for _ in range(int(SECONDS * 10)):
        if page.evaluate(true):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never true: {true}")


def opened(page: "Page", address: str, place: str = "") -> "Page":
    """The page of the slide, with all its tiles."""
    page.goto(f"{address}/slides/one{place}")
    until(page, f"Boolean(window.osd) && osd.world.getItemCount() > 0 && {LOADED}")
    return page


def test_the_list_leads_to_the_slide(page: "Page", address: str) -> None:
    page.goto(address)
    page.locator(".card a").click()
    until(page, f"Boolean(window.osd) && osd.world.getItemCount() > 0 && {LOADED}")
    assert page.title().startswith("one.hcz")
    assert page.locator("#status").inner_text().startswith("level ")
    assert "mm" in page.locator("#length").inner_text() or "µm" in page.locator("#length").inner_text()


def test_a_link_leads_to_its_place_and_the_address_follows(page: "Page", address: str) -> None:
    opened(page, address, "#1200,800,2")
    middle = page.evaluate("[osd.viewport.getCenter(true).x, osd.viewport.getCenter(true).y]")
    assert [round(value * SIZE[0]) for value in middle] == [1200, 800]
    assert page.evaluate("osd.viewport.getZoom(true) * osd.viewport.getContainerSize().x") == 2 * SIZE[0]
    assert "level 0" in page.locator("#status").inner_text()
    assert "0.25 µm/px" in page.locator("#status").inner_text()
    page.get_by_role("button", name="Zoom in").click()
    until(page, "location.hash === '#1200,800,4'")
    page.evaluate("location.hash = '#500,600,1'")
    until(page, "Math.round(osd.viewport.getCenter(true).x * 2400) === 500")


def test_pixels_are_squares_beyond_one_to_one(page: "Page", address: str) -> None:
    opened(page, address, "#1200,800,0.5")
    smooth = "document.querySelector('#viewer canvas').getContext('2d').imageSmoothingEnabled"
    assert page.evaluate(smooth)
    page.evaluate("location.hash = '#1200,800,8'")
    until(page, f"!({smooth})")


def test_the_map_lies_over_the_slide_with_its_legend(page: "Page", address: str) -> None:
    opened(page, address)
    before = page.screenshot()
    page.get_by_role("button", name="Fidelity").click()
    until(page, f"osd.world.getItemCount() === 2 && {LOADED}")
    assert page.evaluate("osd.world.getItemAt(1).getOpacity()") == 0.5
    legend = page.get_by_role("region", name="Fidelity map")
    assert legend.locator("li").count() == 7
    assert page.screenshot() != before
    page.mouse.move(683, 400)
    page.mouse.move(684, 401)
    until(page, "document.getElementById('chunk').textContent.startsWith('Chunk')")
    legend.get_by_label("Show").select_option("measured")
    until(page, f"osd.world.getItemCount() === 2 && {LOADED}")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Fidelity").click()
    assert page.evaluate("osd.world.getItemAt(1).getOpacity()") == 0


def test_the_border_is_swiped_by_pointer_and_keys(page: "Page", address: str) -> None:
    opened(page, address, "#1200,800,1")
    page.keyboard.press("s")
    until(page, f"osd.world.getItemCount() === 2 && {LOADED}")
    edge = "osd.world.getItemAt(1).getClip().width"
    assert page.evaluate(edge) == pytest.approx(1200, abs=1)
    border = page.get_by_role("slider", name="Border")
    box = border.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 - 200, box["y"] + 220)
    page.mouse.up()
    assert page.evaluate(edge) == pytest.approx(1000, abs=2)
    border.press("End")
    assert border.get_attribute("aria-valuenow") == "100"
    until(page, "document.getElementById('psnr').textContent.startsWith('PSNR')")


def test_a_place_that_was_asked_for_is_shown_though_the_page_wrote_its_own(page: "Page", address: str) -> None:
    opened(page, address, "#1200,800,1")
    page.evaluate("location.hash = '#700,900,2'; history.replaceState(null, '', '#1200,800,1')")
    until(page, "Math.round(osd.viewport.getCenter(true).x * 2400) === 700")


def test_side_by_side_both_show_the_same_place(page: "Page", address: str) -> None:
    opened(page, address, "#1200,800,1")
    page.get_by_text("Side by side", exact=True).click()
    until(page, "document.querySelectorAll('#other canvas').length > 0")
    assert page.locator("#other-pane").is_visible()
    page.evaluate("location.hash = '#700,900,2'")
    until(page, "Math.round(osd.viewport.getCenter(true).x * 2400) === 700")
    until(page, "Math.round(osdBeside.viewport.getCenter(true).x * 2400) === 700")
    assert page.evaluate("osdBeside.viewport.getZoom(true) === osd.viewport.getZoom(true)")
    page.keyboard.press("d")
    assert not page.locator("#other-pane").is_visible()


def test_the_page_fits_a_phone_and_is_dark_where_that_is_wanted(browser: "Browser", address: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True)
    page = opened(context.new_page(), address)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(red, green, blue) < 60
    for name in ("Zoom in", "Whole slide"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) >= 44
    context.close()


def test_everything_is_reached_by_keys_and_has_a_name(page: "Page", address: str) -> None:
    opened(page, address)
    names = page.evaluate(
        """[...document.querySelectorAll("button, a, input, select, [role=slider], [role=application]")]
        .filter((part) => part.offsetParent !== null)
        .map((part) => part.getAttribute("aria-label") || part.textContent.trim() ||
          part.labels?.[0]?.textContent.trim())"""
    )
    assert names
    assert all(names)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("0")
    page.keyboard.press("f")
    until(page, "document.getElementById('map').getAttribute('aria-pressed') === 'true'")
    until(page, "document.getElementById('said').textContent === 'Fidelity map shown'")
