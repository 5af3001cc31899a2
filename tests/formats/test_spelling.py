"""Regions are named in OpenSlide's order or by four numbers, and both give the same pixels."""

import numpy as np
import pytest

from histocodec.formats.decode.slide import CompressedSlide


def test_both_orders_give_the_same_pixels(slide: CompressedSlide) -> None:
    expected = np.asarray(slide.read_region((100, 60), 0, (70, 50)))[..., :3]
    for found in (
        slide.read_array((100, 60), 0, (70, 50)),
        slide.read_array([100, 60], 0, np.array([70, 50])),  # type: ignore[call-overload]  # what programs pass
        slide.read_array(location=(100, 60), level=0, size=(70, 50)),
        slide.read_array(location=(100, 60), size=(70, 50)),
        slide.read_array(100, 60, 70, 50),
        slide.read_array(x=100, y=60, width=70, height=50, level=0),
        slide.read_tensor((100, 60), 0, (70, 50)).numpy(),
        slide.read_tensor(100, 60, 70, 50).numpy(),
        slide.read_batch([(100, 60)], 0, (70, 50))[0],
        slide.read_batch([(100, 60)], (70, 50))[0],
        slide.read_batch([(100, 60)], size=(70, 50), level=0)[0],
    ):
        assert np.array_equal(found, expected)


def test_the_level_counts_in_both_orders(slide: CompressedSlide) -> None:
    expected = np.asarray(slide.read_region((400, 200), 1, (40, 30)))[..., :3]
    for found in (
        slide.read_array((400, 200), 1, (40, 30)),
        slide.read_array(400, 200, 40, 30, level=1),
        slide.read_batch([(400, 200)], 1, (40, 30))[0],
        slide.read_batch([(400, 200)], (40, 30), level=1)[0],
        slide.read_tensor((400, 200), 1, (40, 30)).numpy(),
    ):
        assert np.array_equal(found, expected)


def test_a_resolution_takes_the_place_of_the_level(slide: CompressedSlide) -> None:
    expected = slide.read_array(100, 60, 70, 50, mpp=0.7)
    assert np.array_equal(slide.read_array((100, 60), None, (70, 50), mpp=0.7), expected)
    assert np.array_equal(slide.read_array((100, 60), size=(70, 50), mpp=0.7), expected)


@pytest.mark.parametrize(
    ("values", "named", "message"),
    [
        ((), {}, "misses x, y, width, height"),
        ((1, 2, 3), {}, "misses height; it takes"),
        (((1, 2), 0), {}, "misses size"),
        ((1, 2, 3, 4, 5), {}, "too many"),
        (((1, 2), 0, (3, 4)), {"level": 1}, "'level' twice"),
        ((1, 2, 3, 4), {"depth": 1}, "unexpected argument 'depth'"),
        (((1, 2), 0, (3, 4)), {"x": 1}, "unexpected argument 'x'"),
    ],
)
def test_a_wrong_call_is_a_type_error_that_says_what_is_wrong(
    slide: CompressedSlide, values: tuple[object, ...], named: dict[str, object], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        slide.read_array(*values, **named)  # type: ignore[call-overload]


def test_a_batch_without_a_size_or_with_two_levels_is_a_type_error(slide: CompressedSlide) -> None:
    with pytest.raises(TypeError, match="misses size"):
        slide.read_batch([(0, 0)], 0)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="'level' twice"):
        slide.read_batch([(0, 0)], 0, (3, 4), level=0)  # type: ignore[call-overload]
