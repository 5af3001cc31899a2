"""What the routes share: the slides, what decodes them, and the bodies that were made lately."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.requests import Request

from histocodec.cli.viewer.catalogue import Catalogue, Opened
from histocodec.cli.viewer.decoding import Answers, Decoding
from histocodec.cli.viewer.limits import ANSWER_CACHE, RefusedError
from histocodec.cli.viewer.originals import Originals
from histocodec.cli.viewer.scaling import Reading
from histocodec.errors import HistocodecError
from histocodec.geometry import Region
from histocodec.slide import Pixels, Slide
from histocodec.text import printable

T = TypeVar("T")


@dataclass(eq=False)
class Viewer:
    """The state of a server."""

    catalogue: Catalogue
    originals: Originals
    decoding: Decoding
    answers: Answers = field(default_factory=lambda: Answers(ANSWER_CACHE))

    async def open(self, slide_id: str) -> Opened:
        """The slide of this id. Raises RefusedError where there is none or it cannot be opened."""
        return await self.decoding.aside(lambda: self.catalogue.open(slide_id))

    async def original(self, opened: Opened) -> Slide | None:
        """The original of a compressed slide, where it is at hand."""
        return await self.decoding.aside(lambda: self.originals.of(opened))

    async def need_original(self, opened: Opened) -> Slide:
        """The original. Raises RefusedError where it is not at hand."""
        original = await self.original(opened)
        if original is None:
            raise RefusedError(404, "the original is not at hand; --original-dir DIR names where it may be")
        return original

    async def image(self, opened: Opened, reading: Reading, finish: Callable[[Pixels], bytes]) -> bytes:
        """`finish` of a scaled image, decoded together with what else is asked for of its level. Raises RefusedError
        where its pixels are damaged."""
        if reading.level >= len(opened.slide.levels):
            return await self.run(lambda: finish(reading.scaled(opened.part_of_overview(reading.region))))
        return await self.image_of(opened.slide, reading, finish)

    async def image_of(self, slide: Slide, reading: Reading, finish: Callable[[Pixels], bytes]) -> bytes:
        """`image` of a slide that has no overview."""
        return await self.pixels(slide, reading.level, reading.region, lambda pixels: finish(reading.scaled(pixels)))

    async def pixels(self, slide: Slide, level: int, region: Region, finish: Callable[[Pixels], T]) -> T:
        """`finish` of a region's pixels, in the level's own. Raises RefusedError where they are damaged."""
        try:
            return await self.decoding.read(slide, level, region, finish)
        except HistocodecError as exc:
            raise damaged(exc) from exc

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` makes on a thread. Raises RefusedError where pixels are damaged."""
        try:
            return await self.decoding.run(work)
        except HistocodecError as exc:
            raise damaged(exc) from exc


def damaged(exc: HistocodecError) -> RefusedError:
    """The answer where a slide is damaged. It names no path: the terminal has the whole message."""
    logging.getLogger("histocodec.serve").error("%s", printable(str(exc)))
    return RefusedError(502, f"the pixels cannot be read ({type(exc).__name__}); see the terminal of the server")


def viewer_of(request: Request) -> Viewer:
    """The state of the server that a request came to."""
    viewer = request.app.state.viewer
    assert isinstance(viewer, Viewer)
    return viewer
