"""Physical pixel sizes: what files say about microns per pixel, and when to believe them."""

import math

from histocodec.errors import UsageError
from histocodec.slide import Mpp

# How many microns one unit is: the symbols of OME-XML and the words of OME-NGFF.
MICRONS = {
    "pm": 1e-6, "picometer": 1e-6, "Å": 1e-4, "angstrom": 1e-4, "nm": 1e-3, "nanometer": 1e-3,
    "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "micrometer": 1.0,
    "mm": 1e3, "millimeter": 1e3, "cm": 1e4, "centimeter": 1e4, "m": 1e6, "meter": 1e6,
    "in": 25_400.0, "inch": 25_400.0,
}  # fmt: skip

# TIFF's ResolutionUnit; 1 means "no unit", so the numbers are an aspect ratio only.
MICRONS_PER_TIFF_UNIT = {2: 25_400.0, 3: 10_000.0}

# Programs write 72, 96 or 300 dpi (353, 265, 85 µm) into TIFFs where they know nothing. No microscope's
# level 0 is coarser than this, and no flatbed scanner at 600 dpi (42 µm) either.
COARSEST_CREDIBLE_MPP = 50.0


def checked_mpp(mpp: float | tuple[float, float]) -> Mpp:
    """What a user says, as (x, y). One number means square pixels."""
    x, y = (mpp, mpp) if isinstance(mpp, (int, float)) else mpp
    if not (math.isfinite(x) and math.isfinite(y) and x > 0 and y > 0):
        raise UsageError(f"microns per pixel must be above 0 and finite, found {mpp}")
    return float(x), float(y)


def stated_mpp(x: float | None, y: float | None) -> Mpp | None:
    """What a file says, or None where one axis is missing or is no size at all."""
    if x is None or y is None or not (0 < x < math.inf and 0 < y < math.inf):
        return None
    return float(x), float(y)


def printed_mpp(mpp: Mpp | None) -> Mpp | None:
    """A size that comes from TIFF's resolution tags, or None where it is a printer's default."""
    return mpp if mpp is not None and max(mpp) <= COARSEST_CREDIBLE_MPP else None


def in_microns(size: float | None, unit: str) -> float | None:
    """None where there is no size or the unit is no length ("pixel", "reference frame")."""
    factor = MICRONS.get(unit)
    return None if size is None or factor is None else size * factor
