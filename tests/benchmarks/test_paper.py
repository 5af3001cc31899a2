"""The paper's experiments in miniature: what they compare, and that a finished run is not repeated."""

import io
import json
from functools import partial
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from histocodec.benchmarks.paper import cifar, hyperparameters, ladder, normalisation, training_runs
from histocodec.benchmarks.paper.cifar import by_entropy, cifar_images, entropy, grey, kept_variance, split, tissue
from histocodec.benchmarks.paper.ladder import LadderRow, mean_of
from histocodec.benchmarks.paper.organs import label_precision, share_between
from histocodec.benchmarks.paper.training_runs import Results, Setup, curves
from histocodec.benchmarks.studies.patch_retrieval import Patches
from histocodec.sources.synthetic import synthetic_slide
from histocodec.train.data.patches import TrainingImage, training_image

pytest.importorskip("matplotlib", reason="the extra bench is not installed")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_runs, "WIDTHS", (4, 4, 4, 4))


def images(count: int = 2) -> list[TrainingImage]:
    made = [training_image(synthetic_slide(128, 128, seed=i), f"{i}", torch.device("cpu")) for i in range(count)]
    return [image for image in made if image is not None]


def test_a_finished_run_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup("tiny", latent_dim=8, side=32, batch=4, steps=2)
    first = Results(tmp_path, "some").run(setup, images(), images(1))
    assert first.last.step == 2
    assert first.patches[-1] == 8
    found = json.loads((tmp_path / "some.json").read_text())
    assert found["machine"]["cores"] >= 1
    monkeypatch.setattr(training_runs, "train", None)
    assert Results(tmp_path, "some").run(setup, images(), images(1)) == first
    with pytest.raises(TypeError):  # another setup is another run
        Results(tmp_path, "some").run(Setup("tiny", latent_dim=8, side=32, batch=4, steps=3), images(), images(1))


@pytest.mark.slow
def test_curves_are_a_picture(tmp_path: Path) -> None:
    outcome = Results(tmp_path, "some").run(Setup("tiny", 8, 32, batch=4, steps=2), images(), images(1))
    drawn = curves({"one": [outcome], "two": [outcome]}, value="validation_psnr", label="PSNR")
    with Image.open(io.BytesIO(drawn)) as picture:
        assert picture.format == "PNG"


def test_a_grid_of_images_is_cut_up(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    grid = np.repeat(np.repeat(values, 32, 0), 32, 1)
    Image.fromarray(np.stack([grid] * 3, 2)).save(tmp_path / "grid.png")
    found = cifar_images(tmp_path / "grid.png")
    assert found.shape == (6, 3, 32, 32)
    assert found[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_entropy_is_that_of_the_histogram() -> None:
    flat = torch.full((3, 32, 32), 7, dtype=torch.uint8)
    four = torch.arange(4, dtype=torch.uint8).repeat(256).view(1, 32, 32).expand(3, 32, 32)
    assert entropy(flat) == 0
    assert entropy(four) == pytest.approx(2)
    low, high = by_entropy(torch.stack([four, flat, four, flat]))
    assert torch.equal(low, torch.stack([flat, flat]))
    assert torch.equal(high, torch.stack([four, four]))


def test_a_set_is_split_and_normalised_by_what_is_trained_on() -> None:
    sets = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), np.uint8))
    kept, apart = split(sets)
    assert (len(kept), len(apart)) == (16, 4)
    values = torch.stack([image.pixels for image in kept]).float()
    assert torch.allclose(apart[0].mean, values.mean(dim=(0, 2, 3)))


def test_grey_has_three_equal_channels() -> None:
    [image] = grey(images(1))
    assert torch.equal(image.pixels[0], image.pixels[2])
    assert len(image.mean.unique()) == 1


def test_tissue_is_cut_with_its_slides_statistics() -> None:
    [whole] = images(1)
    found = tissue([whole], 5)
    assert len(found) == 5
    assert found[0].pixels.shape == (3, 32, 32)
    assert torch.equal(found[0].mean, whole.mean)


def test_kept_variance_is_none_at_the_variances_own_psnr() -> None:
    values = torch.stack([image.pixels for image in images()]).float().transpose(0, 1).flatten(1)
    psnr = 10 * np.log10(255**2 / float(values.var(dim=1).mean()))
    assert kept_variance(psnr, images()) == pytest.approx(0, abs=1e-6)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Synthetic tissue to train on and to validate with, and a grid of 20 images for CIFAR-10; all runs are tiny."""
    for folder, seeds in (("train", range(2)), ("val", range(2, 3))):
        (tmp_path / folder).mkdir()
        for seed in seeds:
            Image.fromarray(synthetic_slide(256, 256, seed=seed)).save(tmp_path / folder / f"{seed}.png")
    (tmp_path / "cifar10").mkdir()
    grid = np.random.default_rng(0).integers(0, 200, (4 * 32, 5 * 32, 3), np.uint8)
    Image.fromarray(grid).save(tmp_path / cifar.CIFAR, lossless=True)
    for module in (normalisation, cifar):
        monkeypatch.setattr(module, "Setup", partial(Setup, batch=2))
    for name, value in (("BATCHES", (2, 4)), ("DIMENSIONS", (4, 8)), ("BATCH", 4)):
        monkeypatch.setattr(hyperparameters, name, value)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "name", "runs", "pictures"),
    [
        (normalisation.main, "normalisation", 4, ("normalisation.png", "normalisation-picture.png")),
        (hyperparameters.main, "hyperparameters", 4, ("hyperparameters.png",)),
        (cifar.main, "cifar", 6, ("cifar.png",)),
    ],
)
def test_one_command_leaves_numbers_and_pictures(
    command: click.Command, name: str, runs: int, pictures: tuple[str, ...], data: Path
) -> None:
    out = data / "results"
    done = CliRunner().invoke(command, [str(data), "--out", str(out), "--steps", "2"], catch_exceptions=False)
    assert done.exit_code == 0
    found = json.loads((out / f"{name}.json").read_text())["runs"]
    assert len(found) == runs
    assert all(np.isfinite(run["epochs"][-1]["validation_psnr"]) for run in found.values())
    for picture in pictures:
        with Image.open(out / picture) as drawn:
            assert drawn.format == "PNG"


VECTORS = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)


def patches(cases: str = "1234") -> Patches:
    """The first two vectors are near each other, and so are the last two."""
    return Patches(np.array(list("aabb")), np.array(list(cases)), np.array(list("stst")))


def test_precision_leaves_the_case_out() -> None:
    assert label_precision(patches(), VECTORS, "organ", "all").precision == 100
    assert label_precision(patches(), VECTORS, "source", "all").precision == 0
    assert label_precision(patches(), VECTORS, "organ", "all").chance == pytest.approx(100 / 3)
    assert label_precision(patches("1122"), VECTORS, "organ", "all").queries == 0  # no other case has it


def test_variance_between_groups() -> None:
    assert share_between(VECTORS, patches().organ) > 0.9
    assert share_between(VECTORS, patches().source) < 0.1


def step(image: str, codec: str, *, fits: bool, psnr: float) -> LadderRow:
    return LadderRow(image, codec, 512, 100, 90, fits, psnr, 0.5, 5.0, 0.5)


def test_means_are_over_images_in_which_all_codecs_fit() -> None:
    rows = [step("a", ladder.VAE, fits=True, psnr=20), step("a", ladder.PEER, fits=True, psnr=22),
            step("b", ladder.VAE, fits=True, psnr=30), step("b", ladder.PEER, fits=False, psnr=40)]  # fmt: skip
    assert mean_of(rows, ladder.VAE, 512, "psnr") == 20
    assert mean_of(rows, ladder.PEER, 512, "psnr") == 22
