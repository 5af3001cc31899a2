"""Physical pixel sizes: microns per pixel as files state them, and when to believe them."""

import math

from histocodec.errors import UsageError
from histocodec.slide import MPP_RANGE, Mpp, known_mpp

# The length of a unit in microns, by the symbols of OME-XML and the words of OME-NGFF.
MICRONS = {
    "pm": 1e-6, "picometer": 1e-6, "Å": 1e-4, "angstrom": 1e-4, "nm": 1e-3, "nanometer": 1e-3,
    "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0,

    "mm": 1e3, "millimeter": 1e3, "cm": 1e4, "centimeter": 1e4, "m": 1e6, "meter": 1e6,
    "in": 25_400.0, "inch": 25_400.0,
}  # fmt: skip

# By TIFF's ResolutionUnit. Its value 1 means "no unit": then the numbers are only an aspect ratio.
MICRONS_PER_TIFF_UNIT = {2: 25_400.0, 3: 10_000.0}

# Programs write 72, 96 or 300 dpi (353, 265, 85 µm) into TIFFs where they know nothing. No microscope's
# level 0 is coarser than this, and no flatbed scanner at 600 dpi (42 µm) either.
COARSEST_CREDIBLE_MPP = 50.0


def checked_mpp(mpp: float | tuple[float, float]) -> Mpp:
    """A size that a user gives, as (x, y) in microns per pixel; one number means square pixels. Raises UsageError
    unless both are in the range that is believed of files, too."""
    x, y = (mpp, mpp) if isinstance(mpp, (int, float)) else mpp
    if known_mpp((x, y)) is None:
        raise UsageError(f"microns per pixel must be from {MPP_RANGE[0]:g} to {MPP_RANGE[1]:g}, found {mpp}")
    return float(x), float(y)


def stated_mpp(x: float | None, y: float | None) -> Mpp | None:
    """A size that a file states, whether it can be believed or not; None where an axis is missing."""
    return None if x is None or y is None else (float(x), float(y))


def most_credible(*candidates: Mpp | None) -> Mpp | None:
    """The first of the sizes that a file states which can be believed; else the first that it states."""
    stated = [mpp for mpp in candidates if mpp is not None]
    return next((mpp for mpp in stated if known_mpp(mpp)), stated[0] if stated else None)


def stated_number(text: object) -> float | None:
    """A number as a file writes it: None where it has none, and NaN for a text that is no number."""
    if text is None:
        return None
    try:
        return float(str(text))
    except ValueError:
        return math.nan


def printed_mpp(mpp: Mpp | None) -> Mpp | None:
    """A size from TIFF's resolution tags, or None where it must be a printer's default."""
    return mpp if mpp is not None and max(mpp) <= COARSEST_CREDIBLE_MPP else None


def in_microns(size: float | None, unit: str) -> float | None:
    """A size in microns, from a size in `unit`; None where there is no size, and where the unit is no length ("pixel",
    "reference frame")."""
    factor = MICRONS.get(unit)
    return None if size is None or factor is None else size * factor
