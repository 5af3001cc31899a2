"""What is timed: our encoder and reader, and a peer's, on the same pixels."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from histocodec.benchmarks.measure.our_codec import COLD, COLD_SIDE, TO_GPU, OurCodec, Seconds
from histocodec.benchmarks.measure.result_rows import OURS
from histocodec.benchmarks.peers.contender import CodedImage, Contender
from histocodec.slide import Pixels


@dataclass(frozen=True)
class Job:
    """Something to be timed by its own clock, which leaves out what it needs first. One run may give several times,
    each for so many pixels."""

    codec: str
    what: str
    device: str
    threads: int
    pixels: int
    run: Callable[[], Seconds]


def our_jobs(ours: OurCodec) -> list[Job]:
    """Encoding, decoding, entropy decoding and cold regions of a prepared codec."""
    calls = {
        "encode": (ours.whole.area, ours.time_encode),
        "decode": (ours.whole.area, ours.time_decode),
        "entropy decoding": (ours.whole.area, ours.time_entropy_decoding),
        COLD: (COLD_SIDE**2, ours.time_cold_regions),
    }
    return [Job(OURS, what, ours.device, ours.threads, pixels, call) for what, (pixels, call) in calls.items()]


def gpu_job(ours: OurCodec) -> Job:
    """From files to pixels that stay on a GPU."""
    return Job(OURS, TO_GPU, ours.device, ours.threads, ours.whole.area, ours.time_decode_to_gpu)


def peer_jobs(peer: Contender, pixels: Pixels, coded: CodedImage, threads: int) -> list[Job]:
    """Encoding with the setting of a coded image, and decoding it."""

    def encode() -> Seconds:
        began = time.perf_counter()
        peer.encode(pixels, coded.setting, threads=threads)
        return {"encode": time.perf_counter() - began}

    def decode() -> Seconds:
        began = time.perf_counter()
        peer.decode(coded.data, threads=threads)
        return {"decode": time.perf_counter() - began}

    calls = {"encode": encode, "decode": decode}
    area = pixels.shape[0] * pixels.shape[1]
    return [Job(peer.name, what, "cpu", threads, area, call) for what, call in calls.items()]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Keep torch to `count` threads outside the worker threads, too: no run uses more cores than it says."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
