"""The metrics beyond PSNR, against other programs, closed forms and published properties."""

import math
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import deltaE_ciede2000, rgb2hed, rgb2lab
from skimage.metrics import structural_similarity
from skimage.transform import downscale_local_mean

from histocodec.benchmarks.measure.metrics import C1, C2, SCALE_WEIGHTS, fidelity
from histocodec.benchmarks.measure.stains import EOSIN, HEMATOXYLIN, RGB_FROM_STAINS, stains
from histocodec.errors import UnsupportedError, UsageError
from histocodec.slide import Pixels
from histocodec.sources.synthetic import synthetic_slide


@pytest.fixture(scope="module")
def original() -> Pixels:
    """Higher than two bands, with odd sides, and wide enough for all scales."""
    return np.ascontiguousarray(synthetic_slide(256, 384, seed=5)[:301, :203])


@pytest.fixture(scope="module")
def decoded(original: Pixels) -> Pixels:
    noise = np.random.default_rng(0).normal(0, 9, original.shape)
    return np.clip(original + noise, 0, 255).astype(np.uint8)


def flat(value: int, side: int) -> Pixels:
    return np.full((side, side, 3), value, np.uint8)


def stained(hematoxylin: float, eosin: float) -> Pixels:
    light = 255 * 10 ** -(np.array([hematoxylin, eosin, 0]) @ RGB_FROM_STAINS)
    return np.broadcast_to(light.round().astype(np.uint8), (32, 32, 3))


def test_an_image_is_true_to_itself(original: Pixels) -> None:
    found = fidelity(original, original)
    assert (found.psnr, found.ssim, found.ms_ssim_db) == (math.inf, 1.0, math.inf)
    assert (found.delta_e, found.hematoxylin_od, found.eosin_od) == (0, 0, 0)


def test_ssim_is_that_of_scikit_image(original: Pixels, decoded: Pixels) -> None:
    expected = structural_similarity(
        original, decoded, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert fidelity(original, decoded).ssim == pytest.approx(expected, abs=1e-12)


def ms_ssim_by_definition(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Of one plane, by SciPy's filter."""

    def windowed(plane: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(ndimage.gaussian_filter(plane, 1.5, truncate=3.5)[5:-5, 5:-5])

    value = 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS):
        mean_a, mean_b = windowed(a), windowed(b)
        variance_a, variance_b = windowed(a * a) - mean_a**2, windowed(b * b) - mean_b**2
        term = (2 * (windowed(a * b) - mean_a * mean_b) + C2) / (variance_a + variance_b + C2)
        if scale == len(SCALE_WEIGHTS) - 1:
            term *= (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
        value *= float(term.mean()) ** weight
        a, b = (downscale_local_mean(one[: len(one) // 2 * 2, : one.shape[1] // 2 * 2], (2, 2)) for one in (a, b))
    return value


def test_ms_ssim_is_its_definition(original: Pixels, decoded: Pixels) -> None:
    planes = [(original[..., i].astype(np.float64), decoded[..., i].astype(np.float64)) for i in range(3)]
    expected = float(np.mean([ms_ssim_by_definition(a, b) for a, b in planes]))
    assert fidelity(original, decoded).ms_ssim_db == pytest.approx(-10 * math.log10(1 - expected), abs=1e-7)


@pytest.mark.parametrize(("side", "scales"), [(16, 1), (21, 1), (22, 2), (44, 3), (175, 4), (176, 5)])
def test_flat_images_differ_in_luminance_of_the_coarsest_scale_alone(side: int, scales: int) -> None:
    luminance = (2 * 100 * 140 + C1) / (100**2 + 140**2 + C1)
    found = fidelity(flat(100, side), flat(140, side))
    assert found.ssim == pytest.approx(luminance, abs=1e-9)
    expected = luminance ** (SCALE_WEIGHTS[scales - 1] * sum(SCALE_WEIGHTS) / sum(SCALE_WEIGHTS[:scales]))
    assert 1 - 10 ** (-found.ms_ssim_db / 10) == pytest.approx(expected, abs=1e-9)


def test_an_inverted_image_has_a_value(original: Pixels) -> None:
    found = fidelity(original, 255 - original)
    assert found.ssim < 0
    assert found.ms_ssim_db >= 0


def test_delta_e_of_black_and_white_is_100() -> None:
    assert fidelity(flat(0, 16), flat(255, 16)).delta_e == pytest.approx(100, abs=0.01)


def test_delta_e_is_that_of_scikit_image_in_double_precision(original: Pixels, decoded: Pixels) -> None:
    expected = float(deltaE_ciede2000(rgb2lab(original), rgb2lab(decoded)).mean())
    assert fidelity(original, decoded).delta_e == pytest.approx(expected, abs=1e-4)


def test_stains_are_six_times_those_of_scikit_image() -> None:
    pixels = np.random.default_rng(1).integers(1, 256, (40, 30, 3), dtype=np.uint8)
    assert stains(pixels) == pytest.approx(6 * rgb2hed(pixels), abs=1e-5)


def test_lost_stain_is_measured_in_optical_density() -> None:
    found = fidelity(stained(0.8, 0.3), stained(0.6, 0.3))
    assert found.hematoxylin_od == pytest.approx(0.2, abs=0.01)
    assert found.eosin_od == pytest.approx(0, abs=0.01)
    found = fidelity(stained(0.5, 0.5), stained(0.5, 0.4))
    assert found.hematoxylin_od == pytest.approx(0, abs=0.01)
    assert found.eosin_od == pytest.approx(0.1, abs=0.01)


def test_stain_errors_are_means_over_all_pixels(original: Pixels, decoded: Pixels) -> None:
    difference = np.abs(stains(original) - stains(decoded)).mean((0, 1), dtype=np.float64)
    found = fidelity(original, decoded)
    assert (found.hematoxylin_od, found.eosin_od) == pytest.approx((difference[HEMATOXYLIN], difference[EOSIN]))


def test_black_is_as_dark_as_the_darkest_grey() -> None:
    assert fidelity(flat(0, 16), flat(1, 16)).hematoxylin_od == 0


@pytest.mark.parametrize(
    ("a", "b"),
    [(flat(0, 16), flat(0, 17)), (flat(0, 15), flat(0, 15)), (flat(0, 16)[..., 0], flat(0, 16)[..., 0])],
    ids=["of two sizes", "too small", "grey"],
)
def test_what_cannot_be_compared_is_refused(a: Pixels, b: Pixels) -> None:
    with pytest.raises(UsageError, match="compare"):
        fidelity(a, b)


def test_without_scikit_image_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.color", None)
    with pytest.raises(UnsupportedError, match=r"skimage.* pip install 'histocodec\[bench\]'") as caught:
        fidelity(flat(0, 16), flat(1, 16))
    assert caught.value.exit_code == 4


def test_importing_needs_no_extra() -> None:
    code = (
        "import sys\n"
        "from histocodec.benchmarks.measure import metrics, nuclei\n"
        "from histocodec.benchmarks.peers import codecs\n"
        "print({'skimage', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
