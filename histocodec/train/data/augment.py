"""Patches harder than the training images: structures on background, and statistics that do not fit.

Few images show what a section's edge shows: thin and even black structures on white, where a transform that learnt from
dense tissue does worse than any wavelet. And none is normalised by the statistics of a larger slide that it is part of.
"""

import math

import numpy as np
import torch
from torch import Tensor

from histocodec.normalise import DEFAULT_MEAN, DEFAULT_STD
from histocodec.tissue import BACKGROUND_DISTANCE

BACKGROUND = 245.0  # grey value of the background that is put in
COVER = (0.03, 0.7)  # share of a patch that keeps its structure
LEAST_PIXELS = 2000  # of structure; with fewer, the encoder has no statistics and takes its defaults
LEAST_STD = 3.0
DISTURBED_GAIN, DISTURBED_OFFSET = 0.25, 0.3  # largest change, as a logarithm and in standard deviations

Patch = tuple[Tensor, Tensor]  # (3, S, S) float, normalised, and the standard deviation (3,) that undoes it


def on_background(patch: Tensor, std: Tensor, rng: np.random.Generator) -> Patch:
    """The darkest structures of a patch (3, S, S) on background, normalised by their own statistics."""
    grey = patch * std[:, None, None]  # up to a constant
    light = grey.mean(0)
    sample = light.flatten()[::7]
    edge = torch.quantile(sample, math.exp(rng.uniform(*np.log(COVER))))
    depth = torch.relu(edge - light) / (edge - torch.quantile(sample, 0.002) + 1e-3)  # 0 at the edge, 1 at the core
    colour = grey.flatten(1).std(1) * float(rng.uniform(0.5, 2.5))
    bleached = float(rng.uniform(0, 1)) ** 2  # from the patch's own colour to grey, as dust and pigment are
    colour = (1 - bleached) * colour + bleached * colour.mean()
    contrast = 2 * float(rng.uniform(0.4, 2.0))
    tint = (1 - bleached) * float(rng.uniform(0.3, 1.2)) * (grey - light) * torch.tanh(3 * depth)
    drawn = tint - contrast * colour[:, None, None] * depth ** float(rng.uniform(0.5, 1.2))
    noise = torch.from_numpy(rng.standard_normal(drawn.shape, np.float32)).to(drawn.device) * float(rng.uniform(0, 1))
    drawn = (drawn.clamp(-BACKGROUND, 255 - BACKGROUND) + noise).round()
    structure = drawn.abs().amax(0) > BACKGROUND_DISTANCE
    count = structure.sum()  # stays on its device: asking a GPU for it would wait for the step that it computes
    mean = (drawn * structure).sum((1, 2)) / count
    variance = ((drawn - mean[:, None, None]).square() * structure).sum((1, 2)) / (count - 1)
    usual_mean, usual_std = (torch.tensor(values, device=drawn.device) for values in (DEFAULT_MEAN, DEFAULT_STD))
    enough = count > LEAST_PIXELS
    mean = torch.where(enough, mean, usual_mean - BACKGROUND)
    std = torch.where(enough, variance.sqrt().clamp(min=LEAST_STD), usual_std)
    return (drawn - mean[:, None, None]) / std[:, None, None], std


def disturbed(patch: Tensor, std: Tensor, rng: np.random.Generator) -> Patch:
    """The pixels of a patch (3, S, S), normalised by the statistics of a slide whose tissue differs."""
    gain = math.exp(rng.uniform(-DISTURBED_GAIN, DISTURBED_GAIN))
    return patch * gain + float(rng.uniform(-DISTURBED_OFFSET, DISTURBED_OFFSET)), std / gain
