"""Exact pixels: no sample is off by more than the bound, the kernel does what its description says, and bytes that are
not a chunk are refused."""

import math
from hashlib import sha256

import numpy as np
import pytest

from histocodec.codec import exact, exact_wave
from histocodec.codec.exact_fit import (
    BASE_TERMS,
    CLASSES,
    CONTEXTS,
    COUNTS,
    MOST_TERMS,
    NEAR,
    ORDER,
    Fitter,
    Scales,
    Weights,
    taps_of,
)
from histocodec.codec.exact_wave import ACTIVITY_BITS, MEAN_BITS, MOST_OFF, TERMS
from histocodec.entropy.logistic import FALLOFF, PHASES, SCALES, costs, logistic_tables
from histocodec.errors import FormatError, UsageError
from histocodec.slide import Pixels
from histocodec.sources.synthetic import synthetic_slide

GOLDEN = (
    "01012a2e2914131d060296d512004652d892e30b3b12669e2f1c099c9c6d862af7666a0ec6dc1ead9c89a6ef61bc73b9fef5"
    "52365af01947e0342b0706b0f4b8aa3e347d4201082c8fc3fb5ece448e828fc969ca2c8a70e9dd1de3482ea8a8a19457f920"
    "925afed9bcacde6661d323688b21efa51be1be9a69f5c9451942ca3c68a04db5e0051cc2cf3c88e05835d4451d82c83c9f20"
    "567c124ed20087b9349b53bcf40dcc4088b9459b5cbcea132a3d87f97cbd11a9993b65e46fe4839f8f61c8a12f3eae234564"
    "c3dc0723d122859ee634322ff9ffaab014e33fefbf7117ef837c297e36b057cc7a681aec9faed5ebe00f42f584888f789a4d"
    "7b10e46040f66eec634b8535571ffee50df312e991369acc18080d880d0738536f45105b6bca002a00"
)
GOLDEN_PIXELS = "3563026450e31047dc7c74319400c3f38270b47ac0fd05690d3ff88670ea53aa"
SIZES = [(1, 1), (1, 9), (8, 1), (2, 3), (5, 17), (31, 6)]


def noise(height: int, width: int, spread: int, seed: int = 1) -> tuple[Pixels, Pixels]:
    """Pixels and a base that is near them, black and white among them."""
    rng = np.random.default_rng(seed)
    pixels = rng.choice(np.array([0, 1, 90, 128, 254, 255]), (height, width, 3)) + rng.integers(
        -3, 4, (height, width, 3)
    )
    base = pixels + rng.integers(-spread, spread + 1, pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8), np.clip(base, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("error", [0, 1, 2, 7, 127])
def test_no_sample_is_off_by_more_than_the_bound(size: tuple[int, int], error: int) -> None:
    for spread in (0, 4, 255):
        pixels, base = noise(*size, spread)
        decoded = exact.decode(exact.encode(pixels, base, error), base)
        assert decoded.dtype == np.uint8 and decoded.shape == pixels.shape
        assert int(abs(decoded.astype(int) - pixels).max()) <= error


def test_tissue_is_the_same_again_with_every_number_of_classes() -> None:
    for side in (100, 190, 260):  # 1, 2 and 4 classes
        pixels = synthetic_slide(side, side + 3, seed=3)
        base = (pixels // 16 * 16 + 8).astype(np.uint8)
        data = exact.encode(pixels, base, 0)
        assert np.array_equal(exact.decode(data, base), pixels)
        assert data == exact.encode(pixels, base, 0)
        bits = 8 * len(data) / pixels.size
        assert 1 < bits < 6  # of 8; noise is not predictable
    assert data[1] == 4


def test_a_base_that_is_near_enough_takes_two_bytes() -> None:
    pixels, base = noise(40, 30, 2)
    assert exact.encode(pixels, base, 2) == bytes([2, 0])
    assert np.array_equal(exact.decode(bytes([2, 0]), base), base)


def test_what_the_bound_and_shapes_may_be() -> None:
    pixels, base = noise(4, 4, 2)
    for error in (-1, 128):
        with pytest.raises(UsageError, match="allowed are 0 to 127"):
            exact.encode(pixels, base, error)
    with pytest.raises(UsageError, match="not empty"):
        exact.encode(pixels[:0], base[:0], 0)
    with pytest.raises(UsageError, match=r"\(h, w, 3\)"):
        exact.encode(pixels, base[1:], 0)


# The kernel is held to a description that goes position by position.


def described(k: np.ndarray, base: Pixels, step: int, weights: Weights, scales: Scales) -> dict[tuple[int, ...], tuple]:
    """The symbol and the number of the table of each (y, x, place), by plain Python."""
    height, width = k.shape[:2]
    off: dict[tuple[int, ...], int] = {}

    def k_at(y: int, x: int, c: int) -> int:
        return int(k[y, x, c]) if 0 <= y < height and 0 <= x < width else 0

    def base_at(y: int, x: int, c: int) -> int:
        return int(base[min(max(y, 0), height - 1), min(max(x, 0), width - 1), c])

    found = {}
    for y, x in sorted(np.ndindex(height, width), key=lambda at: (at[1] + 3 * at[0], at[0])):

        def slopes(c: int, y: int = y, x: int = x) -> list[int]:
            west, north, corner, east = (k_at(y + dy, x + dx, c) for dy, dx in NEAR[:4])
            return [abs(west - corner), abs(north - corner), abs(north - east)]

        def base_slopes(c: int, y: int = y, x: int = x) -> list[int]:
            across = abs(base_at(y, x + 1, c) - base_at(y, x - 1, c))
            return [across, abs(base_at(y + 1, x, c) - base_at(y - 1, x, c))]

        rough = sum(step * sum(slopes(c)) + sum(base_slopes(c)) for c in range(3))
        group = sum(rough > limit for limit in weights.limits.tolist())
        for place, c in enumerate(ORDER):
            terms = [k_at(y + dy, x + dx, other) for dy, dx, other in taps_of(place)]
            for other in range(3):
                here = base_at(y, x, other)
                for dy in (-1, 0, 1):
                    terms += [base_at(y + dy, x + dx, other) - (here if dy or dx else 128) for dx in (-1, 0, 1)]
            terms.append(8)
            row = weights.weights[place, group, : len(terms)].tolist()
            mean = (sum(w * t for w, t in zip(row, terms, strict=True)) + (1 << (MEAN_BITS - 1))) >> MEAN_BITS
            one, two = ORDER[(place + 1) % 3], ORDER[(place + 2) % 3]
            parts = [off.get((y + dy, x + dx, c), 0) for dy, dx in NEAR[:6]]
            parts += [off.get((y + dy, x + dx, one), 0) + off.get((y + dy, x + dx, two), 0) for dy, dx in NEAR[:2]]
            parts += [off[y, x, ORDER[i]] if i < place else 0 for i in (0, 1)]
            parts += [8 * slope for slope in (*slopes(c), *base_slopes(c))] + [64]
            activity = sum(w * t for w, t in zip(scales.activity[place].tolist(), parts, strict=True)) >> ACTIVITY_BITS
            context = sum(activity > limit for limit in scales.thresholds[place].tolist())
            found[y, x, place] = (
                k_at(y, x, c) - (mean >> 3),
                8 * int(scales.scales[place, context]) + (mean & 7),
            )
            off[y, x, c] = min(abs(8 * k_at(y, x, c) - mean), MOST_OFF)
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("most", [1, 40, 255])
def test_the_kernel_does_what_its_description_says(size: tuple[int, int], most: int) -> None:
    rng = np.random.default_rng(most)
    height, width = size
    step = 2 * (255 // most) - 1 if most < 255 else 1
    k = rng.integers(-most, most + 1, (height, width, 3)).astype(np.int16)
    base = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    large = 32767 if most == 255 else 600
    values = rng.choice(np.array([-large, large, 0, 77]), (3, CLASSES, MOST_TERMS))
    weights = Weights(values.astype(np.int32), (0, 0), np.array([100, 700, 2000], np.int32))
    scales = Scales(
        rng.integers(0, 1024, (3, TERMS + 1)).astype(np.int32),
        np.sort(rng.integers(0, 200_000, (3, CONTEXTS - 1)), axis=1).astype(np.int32),
        rng.integers(0, SCALES, (3, CONTEXTS)).astype(np.int32),
    )
    wave = exact._Wave(base, step)
    exact_wave.skew(k, wave.k, 0)
    symbols, tables = np.empty(k.size, np.int32), np.empty(k.size, np.uint16)
    bounds = np.zeros(3 * wave.times + 1, np.int64)
    wave.walk(weights, scales, (symbols, tables, bounds))
    expected = described(k, base, step, weights, scales)
    order = sorted(expected, key=lambda at: (at[1] + 3 * at[0], at[2], at[0]))  # time, place, row
    assert [*zip(symbols.tolist(), tables.tolist(), strict=True)] == [expected[at] for at in order]
    times = [(x + 3 * y, place) for y, x, place in order]
    assert np.diff(bounds).tolist() == [times.count((t, p)) for t in range(wave.times) for p in range(3)]
    assert np.array_equal(exact_wave.unskewed(wave.k, height, width), k)


def test_weights_follow_what_they_are_fitted_to() -> None:
    rng = np.random.default_rng(5)
    base = rng.integers(0, 256, (80, 90, 3)).astype(np.uint8)
    k = np.zeros((80, 90, 3), np.int16)
    k[:, :, 1] = rng.integers(-20, 21, (80, 90))
    k[:, :, 0] = k[:, :, 1]  # red is green, and blue half of its difference from the base's left
    k[:, :, 2] = np.rint((base[:, :, 2].astype(int) - np.roll(base[:, :, 2], 1, axis=1)) / 2)
    fitter = Fitter(k, base, 1)
    weights = fitter.weights(1)
    wave = exact._Wave(base, 1)
    exact_wave.skew(k, wave.k, 0)
    wave.walk(
        weights,
        exact._NO_SCALES,
        (np.empty(k.size, np.int32), np.empty(k.size, np.uint16), np.zeros(3 * wave.times + 1, np.int64)),
    )
    off = wave.off()
    assert off[:, :, 1].mean() > 40  # noise in green, in eighths
    assert np.median(off[:, :, 0]) <= 2
    assert np.median(off[:, 1:, 2]) <= 6  # what rounding to whole numbers leaves: up to a half
    assert int(COUNTS[1]) + BASE_TERMS <= MOST_TERMS


# Bytes.


def test_the_bytes_of_a_chunk_stay_what_they_are() -> None:
    """A chunk that was written once decodes to the same pixels for ever."""
    base = np.add.outer(np.arange(6) * 9, np.arange(7) * 5)[:, :, None] + np.array([10, 60, 110])
    data = bytes.fromhex(GOLDEN)
    pixels = exact.decode(data, base.astype(np.uint8))
    assert sha256(pixels.tobytes()).hexdigest() == GOLDEN_PIXELS


def test_bytes_that_are_cut_short_are_refused() -> None:
    pixels, base = noise(20, 23, 9)
    data = exact.encode(pixels, base, 0)
    for length in range(len(data)):
        with pytest.raises(FormatError):
            exact.decode(data[:length], base)
    with pytest.raises(FormatError):
        exact.decode(data + b"\0", base)
    with pytest.raises(FormatError, match="of zeros has 3 bytes"):
        exact.decode(b"\0\0\0", base)
    for first in (b"\x80\x01", b"\x00\x03"):
        with pytest.raises(FormatError, match="allowed are 0 to 127, and 0, 1, 2 or 4"):
            exact.decode(first + data[2:], base)
    for at in range(2, exact.HEADER_BYTES):
        with pytest.raises(FormatError, match="an exact chunk begins with"):
            exact.decode(data[:at] + b"\xff" + data[at + 1 :], base)


def test_no_byte_can_change_unnoticed_but_the_bound() -> None:
    pixels, base = noise(24, 20, 6)
    data = exact.encode(pixels, base, 0)
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.integers(1, len(data), 300):
        changed = bytearray(data)
        changed[at] ^= 1 << rng.integers(8)
        try:
            decoded = exact.decode(bytes(changed), base)
        except FormatError:
            refused += 1
        else:
            assert decoded.shape == base.shape
    assert refused >= 295  # the final states are a check of 16 bits for each lane


# Tables.


def test_the_tables_are_logistic() -> None:
    expected = [round(2**32 * math.exp(-1 / (8 * 2 ** ((i - 17) / 5)))) for i in range(SCALES)]
    assert list(FALLOFF) == expected
    tables = logistic_tables()
    assert len(tables) == SCALES * PHASES
    for scale in (0, 9, 20, 31, 47):
        for phase in (0, 3, 7):
            table = PHASES * scale + phase
            low, size, start = int(tables.low[table]), int(tables.size[table]), int(tables.offset[table])
            values = np.arange(low, low + size)
            bits = 14 - np.log2(tables.freq[start : start + size])
            near = abs(8 * values - phase) <= 16 * 2 ** ((scale - 17) / 5)  # twice the scale
            far = np.minimum(abs(8 * values - phase), costs().shape[1] - 1)
            assert (abs(bits - costs()[scale, far])[near] < 0.1).all()
