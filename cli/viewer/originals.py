"""The original of a compressed slide, in the folder that --original-dir names."""

import os
import threading
from pathlib import Path

from histocodec.cli.viewer.catalogue import SUFFIXES, Opened
from histocodec.cli.viewer.limits import LISTED_SLIDES
from histocodec.errors import HistocodecError
from histocodec.slide import Slide
from histocodec.sources import open_slide, with_pyramid


class Originals:
    """Finds originals by the name that a container states, else by its own, and opens them. Thread-safe."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = None if folder is None else folder.resolve()
        self._lock = threading.Lock()
        self._found: dict[str, Slide | None] = {}  # by the version of the compressed slide

    def of(self, opened: Opened) -> Slide | None:
        """The original of a slide; None where none is at hand, or what is has another size."""
        if self.folder is None or opened.container is None:
            return None
        with self._lock:
            if opened.version not in self._found:
                if len(self._found) >= LISTED_SLIDES:
                    self._found.clear()
                self._found[opened.version] = self._search(opened)
            return self._found[opened.version]

    def _search(self, opened: Opened) -> Slide | None:
        assert self.folder is not None
        assert opened.container is not None
        source = opened.container.attributes.source
        stem = opened.entry.name
        for suffix in SUFFIXES:
            stem = stem.removesuffix(suffix)
        for path in self._candidates(source.name, stem):
            if source.bytes is not None and path.is_file() and path.stat().st_size != source.bytes:
                continue
            try:
                slide = with_pyramid(open_slide(path))
            except HistocodecError:
                continue
            full, ours = slide.levels[0], opened.slide.levels[0]
            if (full.width, full.height) == (ours.width, ours.height):
                return slide
            slide.close()
        return None

    def _candidates(self, name: str, stem: str) -> list[Path]:
        """Files of the folder with the stated name, then those that are called like the container."""
        assert self.folder is not None
        exact: list[Path] = []
        alike: list[Path] = []
        for count, item in enumerate(os.scandir(self.folder)):
            if count >= LISTED_SLIDES:
                break
            path = Path(item.path)
            if path.name.endswith(SUFFIXES) or not path.resolve().is_relative_to(self.folder):
                continue
            if name and path.name == name:
                exact.append(path)
            elif path.stem == stem or path.name == stem:
                alike.append(path)
        return [*exact, *sorted(alike)]
