"""Time how fast a GPU decodes: the whole of level 0 of containers, from their files to pixels that stay on the GPU.

    python -m histocodec.benchmarks.studies.gpu slide.hcz another.hcz

Files have been read before, so they are in the system's memory. The SHA-256 of the pixels is printed, too: it is the
same with `--device cpu`.
"""

import hashlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import click
import torch

from histocodec.benchmarks.measure.provenance import Machine
from histocodec.benchmarks.studies.run_command import run_command
from histocodec.device import choose_device
from histocodec.formats.container.states import BACKGROUND
from histocodec.formats.decode.slide import CompressedSlide, open_compressed
from histocodec.geometry import Region
from histocodec.report import print_json


@dataclass(frozen=True)
class Decoding:
    """How fast one container was decoded. `kernels`: whether the kernels of `histocodec.codec.gpu` did it; otherwise
    the CPU did most of it."""

    container: str
    model: str
    width: int
    height: int
    bpp: float | None
    chunks: int
    chunks_coded: int
    device: str
    kernels: bool
    first_seconds: float  # with everything that is done once
    seconds: tuple[float, ...]  # to the device
    seconds_to_host: tuple[float, ...]
    sha256: str

    @property
    def megapixels(self) -> float:
        """The size of level 0."""
        return self.width * self.height / 1e6

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.startswith("cuda") else self.device
        typical, lowest, highest = (
            self.megapixels / seconds for seconds in (median(self.seconds), max(self.seconds), min(self.seconds))
        )
        host = self.megapixels / median(self.seconds_to_host)
        return (
            f"{self.container}: {self.width} x {self.height}, {self.bpp or 0:.4f} bpp, "
            f"{self.chunks_coded} of {self.chunks} chunks coded, model {self.model}\n"
            f"  {name}{'' if self.kernels else ' without kernels'}: {1000 * median(self.seconds):.1f} ms, "
            f"{typical:.0f} MP/s ({lowest:.0f} … {highest:.0f}) to the device; {host:.0f} MP/s to the host; "
            f"first {self.first_seconds:.2f} s\n  SHA-256 of the pixels {self.sha256}"
        )


def decoding(path: Path, *, device: str, repeat: int) -> Decoding:
    """Decode level 0 once, then `repeat` times to the device and as often to the host.

    The slide is opened anew for each, so that nothing of it is cached; putting the networks together, which all slides
    share, is timed the first time only.
    """
    with open_compressed(path, device=device) as slide:
        level = slide.levels[0]
        began = time.perf_counter()
        pixels = _on_device(slide)
        first_seconds = time.perf_counter() - began
        sha256 = hashlib.sha256(pixels.cpu().numpy().tobytes()).hexdigest()
        tiles, bpp = slide.container.tiles(0), slide.container.attributes.levels[0].bpp
        kernels, chosen = slide.decoder.gpu_regions is not None, str(slide.decoder.device)
    del pixels
    seconds: list[float] = []
    seconds_to_host: list[float] = []
    for turn in range(2 * repeat):
        to_host = bool(turn % 2)
        with open_compressed(path, device=device) as slide:
            assert slide.decoder
            began = time.perf_counter()
            if to_host:
                slide.read(Region(0, 0, level.width, level.height), 0)
            else:
                _on_device(slide)
            (seconds_to_host if to_host else seconds).append(time.perf_counter() - began)
    return Decoding(
        container=path.name,
        model=slide.model_id,
        width=level.width,
        height=level.height,
        bpp=bpp,
        chunks=tiles.size,
        chunks_coded=int((tiles != BACKGROUND).sum()),
        device=chosen,
        kernels=kernels,
        first_seconds=first_seconds,
        seconds=tuple(seconds),
        seconds_to_host=tuple(seconds_to_host),
        sha256=sha256,
    )


def _on_device(slide: CompressedSlide) -> torch.Tensor:
    pixels = slide.read_tensor(0, 0, slide.levels[0].width, slide.levels[0].height)
    if pixels.is_cuda:
        torch.cuda.synchronize(pixels.device)
    return pixels


@click.command()
@click.argument("containers", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--repeat", type=click.IntRange(min=1), default=9, show_default=True, help="Times each way.")
@click.option("--device", default="auto", metavar="auto|cpu|cuda", show_default=True, help="Where to decode.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def main(containers: tuple[Path, ...], *, repeat: int, device: str, as_json: bool) -> None:
    """Time decoding level 0 of CONTAINERS, each of which has to fit into the GPU's memory."""
    machine, chosen = Machine.here(), str(choose_device(device))
    decodings = [decoding(path, device=chosen, repeat=repeat) for path in containers]
    if as_json:
        print_json({"machine": asdict(machine), "decodings": [asdict(result) for result in decodings]})
        return
    click.echo(str(machine))
    for result in decodings:
        click.echo(str(result))


if __name__ == "__main__":
    run_command(main)
