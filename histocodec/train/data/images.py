"""Training images from files: images whole, slides as tiles of tissue that do not overlap; split by case."""

import csv
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from histocodec.errors import UnsupportedError, UsageError
from histocodec.train.data.patches import BLANK, TrainingImage, training_image

IMAGES = {".avif", ".bmp", ".jpeg", ".jpg", ".png", ".webp"}
SLIDES = {".dcm", ".mrxs", ".ndpi", ".scn", ".svs", ".tif", ".tiff", ".vms", ".bif"}
TILE = 1024  # side in pixels: room for a 256² crop at half size, wherever it lies
TILES_PER_SLIDE = 64  # so that a cohort of thousands of slides fits into memory
TISSUE_SHARE = 0.5  # of a tile's pixels that must show tissue


def training_files(data: Iterable[Path]) -> list[Path]:
    """Every image and slide among these paths and in these folders, sorted.

    Raises UsageError where a path does not exist, UnsupportedError where there is no image or slide.
    """
    files: list[Path] = []
    for path in data:
        if path.is_dir():
            files += (f for f in path.rglob("*") if f.suffix.lower() in IMAGES | SLIDES)
        elif path.is_file():
            files.append(path)
        else:
            raise UsageError(f"{path}: no such file or folder; images, slides or folders of them are allowed")
    if not files:
        kinds = " ".join(sorted(IMAGES | SLIDES))
        raise UnsupportedError(f"no images or slides in {', '.join(map(str, data))}; looked for {kinds}")
    return sorted(set(files))


def case_of(file: Path) -> str:
    """The patient or slide that a file belongs to: the `case` of its `path` in an images.csv beside it or one folder
    up, else its own name without the suffix."""
    for folder in file.resolve().parents[:2]:
        table = folder / "images.csv"
        if table.is_file():
            cases = _cases(table, table.stat().st_mtime_ns)
            relative = file.resolve().relative_to(folder).as_posix()
            if relative in cases:
                return cases[relative]
    return file.stem


_TABLES: dict[tuple[Path, int], dict[str, str]] = {}


def _cases(table: Path, version: int) -> dict[str, str]:
    if (table, version) not in _TABLES:
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        _TABLES[table, version] = {row["path"]: row["case"] for row in rows if row.get("path") and row.get("case")}
    return _TABLES[table, version]


def held_out(case: str, share: float) -> bool:
    """Whether a case is for validation, at this share (0 … 1) of all cases. Its name alone decides, so that adding data
    moves no case."""
    return int.from_bytes(hashlib.sha256(case.encode()).digest()[:4], "little") < share * 2**32


def load_images(files: Iterable[Path], *, device: torch.device, seed: int) -> Iterator[TrainingImage]:
    """The training images of these files, in their order, on `device`. Those that show only background are left out.

    `seed` decides which tiles of a slide are taken. Raises UnsupportedError where a file cannot be read.
    """
    for file in files:
        case = case_of(file)
        for pixels in _slide_tiles(file, seed) if file.suffix.lower() in SLIDES else [_image(file)]:
            image = training_image(pixels, case, device)
            if image is not None:
                yield image


def _image(file: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as exc:
        raise UnsupportedError(f"{file}: cannot be read as an image: {exc}") from exc


def _slide_tiles(file: Path, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Tiles of level 0 that show tissue, in random order."""
    from histocodec.geometry import Grid
    from histocodec.sources import open_slide

    with open_slide(file) as slide:
        level = slide.levels[0]
        grid = Grid(level.height, level.width, TILE)
        squares = [(row, column) for row in range(grid.rows) for column in range(grid.columns)]
        rng = np.random.default_rng([seed, *file.name.encode()])
        count = 0
        for index in rng.permutation(len(squares)):
            region = grid.region(*squares[index])
            if min(region.width, region.height) < TILE // 2:
                continue
            pixels = slide.read(region, 0)
            if float((pixels.mean(axis=2) <= BLANK).mean()) >= TISSUE_SHARE:
                yield pixels
                count += 1
                if count == TILES_PER_SLIDE:
                    return
