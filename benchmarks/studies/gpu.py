"""How fast a GPU decodes: the whole of level 0 of containers, from their files to pixels that stay there.

    python -m histocodec.benchmarks.studies.gpu slide.zarr another.zarr

Files have been read before and so are in the system's memory. The pixels' SHA-256 is printed, too: with `--device cpu`
it is the same.
"""

import hashlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import click
import torch

from histocodec.benchmarks.measure.provenance import Machine
from histocodec.device import choose_device
from histocodec.formats.container.layout import BACKGROUND
from histocodec.formats.decode.slide import CompressedSlide, open_compressed
from histocodec.geometry import Region
from histocodec.report import print_json


@dataclass(frozen=True)
class Decoding:
    """Of one container. `kernels`: whether those of `histocodec.codec.gpu` decoded it; else mostly the CPU did."""

    container: str
    model: str
    width: int
    height: int
    bpp: float | None
    chunks: int
    chunks_coded: int
    device: str
    kernels: bool
    first_seconds: float  # with all that is done once
    seconds: tuple[float, ...]  # to the device
    seconds_to_host: tuple[float, ...]
    sha256: str

    @property
    def megapixels(self) -> float:
        return self.width * self.height / 1e6

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.startswith("cuda") else self.device
        rates = [self.megapixels / one for one in (median(self.seconds), max(self.seconds), min(self.seconds))]
        host = self.megapixels / median(self.seconds_to_host)
        return (
            f"{self.container}: {self.width} x {self.height}, {self.bpp or 0:.4f} bpp, "
            f"{self.chunks_coded} of {self.chunks} chunks coded, model {self.model}\n"
            f"  {name}{'' if self.kernels else ' without kernels'}: {1000 * median(self.seconds):.1f} ms, "
            f"{rates[0]:.0f} MP/s ({rates[1]:.0f} … {rates[2]:.0f}) to the device; {host:.0f} MP/s to the host; "
            f"first {self.first_seconds:.2f} s\n  SHA-256 of the pixels {self.sha256}"
        )


def decoding(path: Path, *, device: str, repeat: int) -> Decoding:
    """Decodes level 0 once and then `repeat` times each way. The slide is opened anew for each, so that nothing of it
    is cached; putting networks together, which are shared, is not timed but the first time."""
    with open_compressed(path, device=device) as slide:
        level = slide.levels[0]
        began = time.perf_counter()
        pixels = _on_device(slide)
        first = time.perf_counter() - began
        found = hashlib.sha256(pixels.cpu().numpy().tobytes()).hexdigest()
        tiles, bits = slide.container.tiles(0), slide.container.attributes.levels[0].bpp
        kernels, chosen = slide.decoder.gpu_regions is not None, str(slide.decoder.device)
    del pixels
    times: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(2 * repeat):
        with open_compressed(path, device=device) as slide:
            assert slide.decoder
            began = time.perf_counter()
            if turn % 2:
                slide.read(Region(0, 0, level.width, level.height), 0)
            else:
                _on_device(slide)
            times[bool(turn % 2)].append(time.perf_counter() - began)
    return Decoding(
        path.name, slide.model_id, level.width, level.height, bits, tiles.size,
        int((tiles != BACKGROUND).sum()), chosen, kernels, first, tuple(times[False]), tuple(times[True]), found,
    )  # fmt: skip


def _on_device(slide: CompressedSlide) -> torch.Tensor:
    pixels = slide.read_tensor(0, 0, slide.levels[0].width, slide.levels[0].height)
    if pixels.is_cuda:
        torch.cuda.synchronize(pixels.device)
    return pixels


@click.command()
@click.argument("containers", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--repeat", type=click.IntRange(min=1), default=9, show_default=True)
@click.option("--device", default="auto", metavar="auto|cpu|cuda", show_default=True, help="Where to decode.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def main(containers: tuple[Path, ...], *, repeat: int, device: str, as_json: bool) -> None:
    """Decode level 0 of CONTAINERS, which has to fit into the GPU's memory."""
    machine, chosen = Machine.here(), str(choose_device(device))
    found = [decoding(path, device=chosen, repeat=repeat) for path in containers]
    if as_json:
        print_json({"machine": asdict(machine), "decodings": [asdict(one) for one in found]})
        return
    click.echo(f"{machine.cpu}, {machine.cores} cores, load {machine.load}; GPU: {machine.gpu or 'none'}")
    for one in found:
        click.echo(str(one))


if __name__ == "__main__":
    main()
