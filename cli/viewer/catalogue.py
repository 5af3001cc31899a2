"""The slides that a server shows: those that were named, and the containers in the folders that were named.

A slide is found by its id alone, in a list: no part of a request ever becomes a path.
"""

import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histocodec.cli.options import Location, short_name, shown
from histocodec.cli.viewer.limits import LISTED_SLIDES, OPEN_SLIDES, RefusedError
from histocodec.errors import HistocodecError, UsageError
from histocodec.formats.container.abstract_container import Container
from histocodec.formats.container.read import names_container
from histocodec.formats.decode.ome_zarr import NgffVersion, OmeZarrPixels
from histocodec.formats.decode.open import open_slide
from histocodec.formats.decode.slide import CompressedSlide
from histocodec.geometry import Level, Region
from histocodec.slide import WHITE, Pixels, Slide

SUFFIXES = (".hcz", ".hc.zarr")  # of containers, in a folder
STEM = re.compile(r"\.(hc\.zarr|ome\.zarr|[A-Za-z0-9]{1,6})$")
MAX_ID = 64  # characters


@dataclass(frozen=True)
class Entry:
    """A slide in the list: its id, the name that people read, and where it is."""

    id: str
    name: str
    location: Location = field(repr=False)


@dataclass(eq=False)
class Opened:
    """A slide that is open. `version` names its pixels: the container's digest, else what tells that a file changed."""

    entry: Entry
    slide: Slide
    version: str
    views: dict[NgffVersion, OmeZarrPixels] = field(default_factory=dict)
    map_colours: dict[str, NDArray[np.uint8]] = field(default_factory=dict)  # of level 0, by what they show

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The slide's levels, and its overview as a last one where it is smaller than all of them."""
        levels = self.slide.levels
        overview = None if self.container is None else self.container.attributes.overview
        if overview is None or 2 * overview[0] > levels[-1].width:
            return levels
        return *levels, Level(*overview, (levels[0].width / overview[0] + levels[0].height / overview[1]) / 2)

    @cached_property
    def overview(self) -> Pixels:
        """The pixels of the overview, where `levels` ends with it."""
        overview = None if self.container is None else self.container.overview()
        assert overview is not None
        return overview

    def part_of_overview(self, region: Region) -> Pixels:
        """A region of the overview; the background beyond its edge."""
        inside = region.intersect(self.levels[-1].region)
        pixels = np.full((region.height, region.width, 3), self.slide.background or WHITE, np.uint8)
        pixels[inside.within(region)] = self.overview[inside.within(self.levels[-1].region)]
        return pixels

    @cached_property
    def container(self) -> Container | None:
        """The container, where the slide is compressed."""
        return self.slide.container if isinstance(self.slide, CompressedSlide) else None


class Catalogue:
    """Finds slides by their ids, and opens them when they are asked for. Thread-safe."""

    def __init__(self, locations: Sequence[Location], *, device: str = "auto") -> None:
        self._device = device
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._by_place: dict[str, Entry] = {}
        self._open: OrderedDict[str, tuple[str, Opened]] = OrderedDict()  # by id, with the stamp of the file
        self._folders: list[Path] = []
        self._named: list[Entry] = []
        for location in locations:
            self._add_named(location)
        self.scan()

    def _add_named(self, location: Location) -> None:
        """Take what the command line names. Raises UsageError where a path does not exist."""
        if isinstance(location, Path):
            if not location.exists():
                raise UsageError(f"{location}: does not exist")
            if location.is_dir() and not names_container(location) and not _is_slide_folder(location):
                self._folders.append(location.resolve())
                return
        place = shown(location) if isinstance(location, str) else str(location.resolve())
        self._named.append(self._add(location, place))

    def check_named(self) -> None:
        """Open the slides that were named one by one. Raises what `open_slide` raises."""
        for entry in self._named:
            stamp = self._stamp(entry)
            self._open[entry.id] = stamp, _opened(entry, self._device, stamp)

    def _add(self, location: Location, place: str) -> Entry:
        with self._lock:
            if place in self._by_place:
                return self._by_place[place]
            name = short_name(location) or "slide"
            base = re.sub(r"[^A-Za-z0-9_-]+", "-", STEM.sub("", name)).strip("-")[:MAX_ID] or "slide"
            digest = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()
            chosen, length = base, 6
            while chosen in self._entries:  # two of one name: the path tells them apart, without showing it
                chosen, length = f"{base}-{digest[:length]}", length + 2
            entry = Entry(chosen, name, location)
            self._entries[chosen] = self._by_place[place] = entry
            return entry

    def scan(self) -> None:
        """Look for containers that have come into the folders, or have gone."""
        for folder in self._folders:
            for path in containers_in(folder):
                self._add(path, str(path))
        with self._lock:
            for place, entry in list(self._by_place.items()):
                if isinstance(entry.location, Path) and not entry.location.exists():
                    del self._by_place[place], self._entries[entry.id]
                    self._open.pop(entry.id, None)

    def entries(self) -> list[Entry]:
        """All slides, by name."""
        with self._lock:
            return sorted(self._entries.values(), key=lambda entry: (entry.name.lower(), entry.id))

    def entry(self, slide_id: str) -> Entry:
        """A slide's entry. Raises RefusedError where there is none."""
        with self._lock:
            found = self._entries.get(slide_id)
        if found is None:
            raise RefusedError(404, "there is no slide of this id")
        return found

    def open(self, slide_id: str) -> Opened:
        """A slide, opened where it is not yet, or has changed since. Raises RefusedError where there is none or it
        cannot be opened; the message names no path."""
        entry = self.entry(slide_id)
        stamp = self._stamp(entry)
        with self._lock:
            kept = self._open.get(entry.id)
            if kept is not None and kept[0] == stamp:
                self._open.move_to_end(entry.id)
                return kept[1]
        try:
            opened = _opened(entry, self._device, stamp)
        except HistocodecError as exc:
            raise RefusedError(502, without_path(str(exc), entry)) from exc
        with self._lock:
            self._open[entry.id] = stamp, opened
            while len(self._open) > OPEN_SLIDES:
                self._open.popitem(last=False)  # not closed: somebody may be reading
        return opened

    def _stamp(self, entry: Entry) -> str:
        """What changes when a slide's file does. Raises RefusedError where it has gone, or has become a link that
        leads out of its folder."""
        if not isinstance(entry.location, Path):
            return ""
        path = entry.location
        try:
            resolved = path.resolve(strict=True)
            facts = (resolved / "zarr.json" if resolved.is_dir() else resolved).stat()
        except OSError as exc:
            raise RefusedError(404, "the slide has gone") from exc
        folders = [folder for folder in self._folders if path.is_relative_to(folder)]
        if folders and not any(resolved.is_relative_to(folder) for folder in folders):
            raise RefusedError(404, "the slide has become a link that leads out of its folder")
        return f"{facts.st_ino}-{facts.st_size}-{facts.st_mtime_ns}"


def _opened(entry: Entry, device: str, stamp: str) -> Opened:
    slide = open_slide(entry.location, device=device)
    digest = slide.container.attributes.provenance.digest if isinstance(slide, CompressedSlide) else ""
    if not digest:
        digest = hashlib.sha256(f"{shown(entry.location)}\0{stamp}".encode("utf-8", "surrogateescape")).hexdigest()
    return Opened(entry, slide, digest)


def _is_slide_folder(folder: Path) -> bool:
    """Whether a folder that is no container is a slide itself: OME-Zarr, or the folder of a .mrxs file."""
    names = ("zarr.json", ".zgroup", ".zarray")
    return any((folder / name).exists() for name in names) or folder.with_name(folder.name + ".mrxs").is_file()


def containers_in(folder: Path) -> Iterator[Path]:
    """The containers below a folder, LISTED_SLIDES at most. Links to folders are not followed, and links to files only
    where they stay in the folder."""
    count = 0
    for root, folders, files in os.walk(folder):
        here = Path(root)
        found = [name for name in folders if name.endswith(SUFFIXES)]
        folders[:] = sorted(name for name in folders if name not in found and not name.startswith("."))
        for name in sorted([*found, *(name for name in files if name.endswith(SUFFIXES))]):
            path = here / name
            try:
                inside = path.resolve(strict=True).is_relative_to(folder)
            except (OSError, RuntimeError):  # a link to nothing, or to itself
                continue
            if inside and not (path.is_symlink() and path.is_dir()) and not name.startswith("."):
                yield path
                count += 1
            if count >= LISTED_SLIDES:
                return


def without_path(message: str, entry: Entry) -> str:
    """An error's message with the slide's name in place of its path."""
    if isinstance(entry.location, Path):
        for text in (str(entry.location.resolve()), str(entry.location)):
            message = message.replace(text, entry.name)
        return message
    return message.replace(shown(entry.location), entry.name)
