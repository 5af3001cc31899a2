"""Decode random latents with a random integer synthesis, and print the SHA-256 of the pixels.

    python -m tests.tools.conformance.integer_pixels [DEVICE]

Everything comes from a seeded generator of integers, so that every machine must print `EXPECTED_SHA256`, for ever.
"""

import hashlib
import sys

import numpy as np
import torch

from histocodec.codec.transform import Transform
from histocodec.geometry import Margin
from histocodec.models.config import HyperConfig
from histocodec.models.transforms.exact import IntegerSynthesis
from histocodec.models.transforms.fast import fastest_engine
from histocodec.models.transforms.integer import check_synthesis, synthesis_tensors
from histocodec.normalise import ChannelStats

CONFIG = HyperConfig(latent_channels=64, synthesis16=(True, False), synthesis8=(True,), integer_synthesis=True)
EXPECTED_SHA256 = "8cc6d3e7d183fc96ca9bd468dfe9a07c2470cf8a6ce42824bc84ea5837c7f9ad"
SHIFTS = {"expand": 8, "depthwise": 8, "project": 10, "up": 10, "tail": 12}


def arrays() -> dict[str, np.ndarray]:
    """The arrays of a synthesis: weights of every size, many of them the largest."""
    rng = np.random.default_rng(20)
    made: dict[str, np.ndarray] = {}
    for name, (shape, dtype) in synthesis_tensors(CONFIG):
        layer, part = name.split(".")[-2:]
        if part == "weight":
            largest = {"project": 60, "up": 30, "tail": 40}.get(layer, 200)
            made[name] = np.clip(rng.integers(-largest, largest + 1, shape), -127, 127).astype(dtype)
        elif part == "bias":
            made[name] = rng.integers(-5000, 5001, shape).astype(dtype)
        elif part == "shift":
            made[name] = (SHIFTS[layer] - rng.integers(0, 2, shape)).astype(dtype)
        elif part == "fine":
            made[name] = np.sort(rng.permutation(64)[: shape[0]]).astype(dtype)
        elif part == "coarse":
            made[name] = rng.integers(0, 3, shape).astype(dtype)
        else:
            made[name] = (rng.integers(8, 64, shape) / 8).astype(dtype)
    check_synthesis(CONFIG, made)
    return made


def pixels(device: str) -> np.ndarray:
    """(2 · 96, 80, 3) uint8: pixels of latents in the usual range, and of some far beyond it."""
    rng, where = np.random.default_rng(21), torch.device(device)
    latents = rng.integers(-20, 21, (2, 64, 8, 8)).astype(np.float32) / 8
    latents[1, ::7] *= 40
    made = IntegerSynthesis(CONFIG, fastest_engine(CONFIG, arrays(), where))
    with torch.inference_mode():
        blocks = made.window(torch.from_numpy(latents).to(where), Margin(2, 0, 0, 3))
    stats = ChannelStats(np.array([180.3, 140.1, 175.7], np.float32), np.array([4.1, 4.5, 3.3], np.float32))
    return np.concatenate(Transform.denormalise(blocks, stats))


def main() -> None:
    shown = pixels(sys.argv[1] if len(sys.argv) > 1 else "cpu")
    assert 20 < shown.std() < 120, "the pixels are flat or saturated"
    print(hashlib.sha256(shown.tobytes()).hexdigest())


if __name__ == "__main__":
    main()
