"""Where training images come from: image files whole, slides as non-blank tiles that do not overlap; split by case."""

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
TILE = 1024  # pixels a side: room for a 256² crop at half size and for every shift of it
TILES_PER_SLIDE = 64  # a slide of a cohort of thousands must not fill the memory alone
TISSUE_SHARE = 0.5  # of a tile's pixels, at least


def training_files(data: Iterable[Path]) -> list[Path]:
    """Every image and slide among the paths and in their folders, sorted."""
    files: list[Path] = []
    for path in data:
        if path.is_dir():
            files += (f for f in path.rglob("*") if f.suffix.lower() in IMAGES | SLIDES)
        elif path.is_file():
            files.append(path)
        else:
            raise UsageError(f"{path}: no such file or folder")
    if not files:
        kinds = " ".join(sorted(IMAGES | SLIDES))
        raise UnsupportedError(f"no images or slides in {', '.join(map(str, data))}; looked for {kinds}")
    return sorted(set(files))


def case_of(file: Path) -> str:
    """The patient or slide that a file belongs to: as an images.csv beside or above it says, else its own name."""
    for folder in file.resolve().parents[:2]:
        table = folder / "images.csv"
        if table.is_file():
            known = _cases(table, table.stat().st_mtime_ns)
            relative = file.resolve().relative_to(folder).as_posix()
            if relative in known:
                return known[relative]
    return file.stem


_TABLES: dict[tuple[Path, int], dict[str, str]] = {}


def _cases(table: Path, version: int) -> dict[str, str]:
    if (table, version) not in _TABLES:
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        _TABLES[table, version] = {row["path"]: row["case"] for row in rows if row.get("path") and row.get("case")}
    return _TABLES[table, version]


def held_out(case: str, share: float) -> bool:
    """Whether a case is for validation: decided by its name alone, so that adding data moves no case."""
    return int.from_bytes(hashlib.sha256(case.encode()).digest()[:4], "little") < share * 2**32


def load_images(files: Iterable[Path], *, device: torch.device, seed: int) -> Iterator[TrainingImage]:
    """The training images of files, in their order; those that show only glass are left out."""
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
    """Tiles of level 0 that show tissue, at random places of a grid."""
    from histocodec.geometry import Grid
    from histocodec.sources import open_slide

    with open_slide(file) as slide:
        level = slide.levels[0]
        grid = Grid(level.height, level.width, TILE)
        places = [(row, col) for row in range(grid.rows) for col in range(grid.columns)]
        rng = np.random.default_rng([seed, *file.name.encode()])
        found = 0
        for index in rng.permutation(len(places)):
            region = grid.region(*places[index])
            if min(region.width, region.height) < TILE // 2:
                continue
            pixels = slide.read(region, 0)
            if float((pixels.mean(axis=2) <= BLANK).mean()) >= TISSUE_SHARE:
                yield pixels
                found += 1
                if found == TILES_PER_SLIDE:
                    return
