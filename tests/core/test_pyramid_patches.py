"""Patches drawn from pyramids on the device that trains, and the step that a GPU captures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from histocodec.errors import UsageError
from histocodec.train.captured import CapturedTrainer
from histocodec.train.data.pyramid_patches import SCALES, PyramidSampler
from histocodec.train.loop import Trainer
from histocodec.train.progress import Progress
from histocodec.train.recipe import HyperPatches, HyperRecipe, HyperStart, MainStage, Model
from histocodec.train.run import run_training
from histocodec.train.schedule import Schedule
from histocodec.train.setup import RunOptions
from tests.support.tiny import TINY, tiny_integer_weights
from tests.support.training import folder_of_images, image

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sampler() -> PyramidSampler:
    return PyramidSampler([image(0, 256), image(1, 160)], batch=6, size=64, seed=3)


def test_a_batch_depends_on_the_step_alone(sampler: PyramidSampler) -> None:
    again = PyramidSampler(sampler.images, batch=6, size=64, seed=3)
    assert torch.equal(sampler(7).pixels, again(7).pixels)
    assert torch.equal(sampler(7).std, again(7).std)
    assert not torch.equal(sampler(7).pixels, sampler(8).pixels)


def test_patches_look_as_those_of_the_other_sampler_do(sampler: PyramidSampler) -> None:
    batches = [sampler(step) for step in range(30)]
    pixels = torch.cat([batch.pixels for batch in batches])
    assert pixels.shape == (180, 3, 64, 64)
    assert pixels.dtype == torch.float32
    assert bool(torch.isfinite(pixels).all())
    assert abs(float(pixels.mean())) < 0.7
    assert 0.4 < float(pixels.std()) < 2


@pytest.mark.parametrize("turn", range(8))
def test_a_crop_is_a_turned_part_of_its_level(turn: int, sampler: PyramidSampler) -> None:
    level = SCALES.index(1.0)
    pixels, offset = sampler.images[1].pixels, int(sampler._offsets[1, level])
    bits = [turn >> i & 1 for i in range(3)]
    crop = sampler._cropped(torch.tensor([[offset + 20 * 160 + 33, 160]]), torch.tensor([bits]))[0]
    expected: Tensor = pixels[:, 20:84, 33:97].float()
    transposed, down, sideways = bits
    if transposed:
        expected = expected.transpose(1, 2)
    axes = [axis for axis, mirrored in ((1, down), (2, sideways)) if mirrored]
    assert torch.equal(crop, expected.flip(axes))


def test_a_level_is_never_smaller_than_a_patch() -> None:
    small = PyramidSampler([image(2, 96)], batch=2, size=64, seed=0)
    assert small._sides.min() == 64
    assert small(0).pixels.shape == (2, 3, 64, 64)


def test_the_last_steps_draw_larger_crops_from_pyramids_too(sampler: PyramidSampler) -> None:
    larger = PyramidSampler(sampler.images, batch=6, size=128, seed=3).enlarged()
    assert isinstance(larger, PyramidSampler)
    assert larger(0).pixels.shape == (3, 3, 192, 192)


def test_a_captured_run_needs_a_gpu(tmp_path: Path) -> None:
    recipe = HyperRecipe(
        model=Model("hyper", "mine"),
        patches=HyperPatches(2, 64),
        start=HyperStart(klt_blocks=2000),
        shape=TINY,
        train=MainStage(4, 5e-4, capture=True),
    )
    options = RunOptions((folder_of_images(tmp_path / "data"),), tmp_path / "run", device="cpu")
    with pytest.raises(UsageError, match="capture needs a GPU"):
        run_training(recipe, options, lambda line: None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_step_learns_what_another_does() -> None:
    device, losses = torch.device("cuda"), dict[type, list[float]]()
    images = [image(0, 256)]
    for kind in (Trainer, CapturedTrainer):
        for i, known in enumerate(images):
            values = {name: getattr(known, name).to(device) for name in ("pixels", "mean", "std")}
            images[i] = type(known)(**values, case=known.case)
        sampler = PyramidSampler(images, batch=4, size=64, seed=3)
        made = kind(TINY, sampler, rate=1e-3, device=device, start=tiny_integer_weights(), integers=True)
        made.initialise()
        found = losses[kind] = list[float]()

        def note(progress: Progress, found: list[float] = found) -> None:
            found.append(progress.loss)

        made.run(Schedule(6, warmup=2), until=6, report=note)
    np.testing.assert_allclose(losses[Trainer], losses[CapturedTrainer], rtol=0.05)
