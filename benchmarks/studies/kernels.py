"""Time the native kernels of each instruction set beside PyTorch's, on one thread, in the same run.

    python -m histocodec.benchmarks.studies.kernels

The synthesis of the default model decodes windows of one chunk and of two side by side, beside oneDNN's int8 products;
the chunk codec decodes a chunk with a tenth of its latents not zero, beside `torch._int_mm`. All take turns, and the
shortest processor time of each counts, so that what else the machine does matters little. What the processor lacks is
left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import process_time

import click
import numpy as np
import torch

from histocodec.benchmarks.measure.provenance import Machine
from histocodec.benchmarks.studies.run_command import run_command
from histocodec.codec.chunk import HyperChunkCodec
from histocodec.geometry import Margin
from histocodec.kernels.instructions import NAMES, available
from histocodec.kernels.pixels import shuffled
from histocodec.models.prior.fast import FastPrior, int8_product
from histocodec.models.prior.native import NativePrior
from histocodec.models.transforms.exact import IntegerSynthesis
from histocodec.models.transforms.fast import fastest_engine
from histocodec.models.transforms.native import NativeSynthesis
from histocodec.models.weights import DEFAULT_MODEL, ModelWeights, find_model
from histocodec.report import print_json, say
from histocodec.threads import LARGE_BYTES, Workers

PYTORCH = "pytorch"
Decode = Callable[[], object]


@dataclass(frozen=True)
class KernelTiming:
    """The shortest processor time of one way to do one thing."""

    what: str
    way: str  # instructions, or PYTORCH
    nanoseconds: float  # a pixel
    speedup: float  # over PYTORCH


@dataclass(frozen=True)
class KernelsResult:
    """All timings of one machine."""

    machine: Machine
    timings: tuple[KernelTiming, ...]


def synthesis_ways(weights: ModelWeights, rows: int, columns: int) -> dict[str, Decode]:
    """The ways to decode a window of so many latents, with the margin that a chunk inside a slide has."""
    halo, rng = weights.hyper.synthesis_halo, np.random.default_rng(0)
    margin, mean, std = Margin(halo, halo, halo, halo), np.full(3, 170, np.float32), np.full(3, 40, np.float32)
    latents = rng.normal(0, 0.3, (rows, columns, weights.hyper.latent_channels)).astype(np.float32).transpose(2, 0, 1)
    synthesis = IntegerSynthesis(weights.hyper, fastest_engine(weights.hyper, weights.arrays, torch.device("cpu")))

    def by_pytorch() -> object:
        with torch.inference_mode():
            planes = synthesis.window(torch.from_numpy(latents)[None], margin)[0].permute(1, 2, 0)
            return shuffled(planes.contiguous().numpy(), mean, std)

    def natively(number: int) -> Decode:
        native = NativeSynthesis(weights.hyper, weights.arrays, instructions=number)
        return lambda: native.pixels(latents, margin, mean, std)

    return {PYTORCH: by_pytorch, **{name: natively(n) for n, name in enumerate(NAMES) if available(name)}}


def chunk_ways(weights: ModelWeights) -> dict[str, Decode]:
    """The ways to decode the bytes of a chunk to latents."""
    config, side = weights.hyper, weights.config.chunk
    spread = 3 * 0.95 ** np.arange(config.latent_channels)
    values = np.random.default_rng(0).normal(size=(config.latent_channels, side, side)) * spread[:, None, None]
    y = np.rint(values).astype(np.int16)
    data = HyperChunkCodec(weights).encode(y, 50)

    def by(prior: FastPrior) -> Decode:
        codec = HyperChunkCodec(weights, prior=prior)
        return lambda: codec.decode(data, y.shape)

    ways = {PYTORCH: by(FastPrior(config, weights.arrays, int8_product()))}
    for number, name in enumerate(NAMES):
        if available(name):
            ways[name] = by(NativePrior(config, weights.arrays, int8_product(), instructions=number))
    return ways


def time_kernels(weights: ModelWeights, rounds: int) -> KernelsResult:
    """Times all ways, in turns, so many rounds, on one worker."""
    bytearray(LARGE_BYTES)  # as workers do, so that memory stays with the process
    halo, side, pixels = weights.hyper.synthesis_halo, weights.config.chunk, weights.config.chunk**2 * 256
    jobs = {
        "synthesis, one chunk": (synthesis_ways(weights, side + 2 * halo, side + 2 * halo), pixels),
        "synthesis, two chunks": (synthesis_ways(weights, side + 2 * halo, 2 * side + 2 * halo), 2 * pixels),
        "entropy decoding, one chunk": (chunk_ways(weights), pixels),
    }
    timings = []
    for what, (ways, count) in jobs.items():
        best = dict.fromkeys(ways, np.inf)
        for decode in ways.values():
            decode()
        for _ in range(rounds):
            for way, decode in ways.items():
                start = process_time()
                decode()
                best[way] = min(best[way], process_time() - start)
        for way, seconds in best.items():
            timings.append(KernelTiming(what, way, 1e9 * seconds / count, best[PYTORCH] / seconds))
    return KernelsResult(Machine.here(), tuple(timings))


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(*, rounds: int, as_json: bool) -> None:
    """Time the native kernels of each instruction set beside PyTorch's."""
    weights = find_model(DEFAULT_MODEL)
    with_one_core = Workers(1)
    result = with_one_core.run(lambda: time_kernels(weights, rounds))
    if as_json:
        print_json(result)
        return
    say(str(result.machine))
    for timing in result.timings:
        print(f"{timing.what:<28} {timing.way:<12} {timing.nanoseconds:>7.1f} ns/pixel {timing.speedup:>6.2f} x")


if __name__ == "__main__":
    run_command(command)
