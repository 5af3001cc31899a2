"""What a container carries beside its pixels: too much of it is refused before the work begins."""

from pathlib import Path

import numpy as np
import pytest

from histocodec.errors import UnsupportedError, UsageError
from histocodec.formats.container.arrays import MAX_METADATA, write_metadata
from histocodec.formats.encode.extras import MAX_PROPERTIES, check_extras
from histocodec.formats.encode.options import EncodeOptions
from histocodec.slide import BaseSlide, Pixels
from histocodec.sources import ArraySlide


def slide_with(*, properties: dict[str, str] | None = None, macro: Pixels | None = None) -> BaseSlide:
    slide = ArraySlide(np.zeros((40, 40, 3), np.uint8), name="a.svs", properties=properties)
    slide.associated = {} if macro is None else {"macro": macro}
    return slide


def test_an_associated_image_that_is_too_wide_is_refused_by_name_where_it_is_to_be_kept() -> None:
    slide = slide_with(macro=np.zeros((3, 9000, 3), np.uint8))
    check_extras(slide, EncodeOptions())
    with pytest.raises(UnsupportedError, match=r"macro image has 9000x3 pixels; up to 8192.* Leave --keep-macro out"):
        check_extras(slide, EncodeOptions(keep_macro=True))


def test_properties_that_are_too_large_are_refused_where_they_are_to_be_kept() -> None:
    slide = slide_with(properties={"vendor.Comment": "x" * MAX_PROPERTIES})
    check_extras(slide, EncodeOptions())
    with pytest.raises(UnsupportedError, match="Leave --keep-private out"):
        check_extras(slide, EncodeOptions(keep_private=True))


def test_no_metadata_is_written_that_no_reader_takes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can be read again"):
        write_metadata(tmp_path, {"attributes": "x" * MAX_METADATA})
    assert not list(tmp_path.iterdir())
