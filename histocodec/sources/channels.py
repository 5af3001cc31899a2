"""Which three grey channels are the colours of one image, and which are stains that a microscope lit one by one."""

import re
from collections.abc import Sequence

from histocodec.errors import UnsupportedError

COLOURS = frozenset(("r", "g", "b", "red", "green", "blue"))
UNNAMED = re.compile(r"(?:(?:image|channel|chan|ch|c|sample)?[ :_#-]*\d*)(?:[ :_-]*\d+)*", re.IGNORECASE)
MIXED = ("rgb", "brightfield", "bright field", "bright-field", "trans")  # in names that programs give to all three


def check_colours(names: Sequence[str], source: str) -> None:
    """Raises UnsupportedError where the names of three channels say that they are not red, green and blue: DAPI, FITC
    and TRITC would become an image in false colours. Names that say nothing (`Channel 0`) are taken as colours.

    `source` is the file's name in the error.
    """
    stains = [name for name in names if not _may_be_colour(name)]
    if stains:
        raise UnsupportedError(
            f"{source}: its channels are called {', '.join(names)}; only red, green and blue of a bright-field image "
            "are read, not fluorescence. Save it as RGB if it is one"
        )


def _may_be_colour(name: str) -> bool:
    plain = name.strip().lower()
    return plain in COLOURS or UNNAMED.fullmatch(plain) is not None or any(word in plain for word in MIXED)
