"""What a result has to say about where and with what it was made."""

import os
import platform
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from histocodec.benchmarks.peers.contender import Contender
from histocodec.models.weights import MODELS_VARIABLE, ModelWeights, find_model
from histocodec.threads import default_workers
from histocodec.version import VERSION

PACKAGES = ("imagecodecs", "numba", "numpy", "pillow", "torch", "zarr")


@dataclass(frozen=True)
class Machine:
    cpu: str
    cores: int  # that this process may use
    gpu: str | None
    system: str
    load: float | None  # of the last minute, at the start: times taken on a busy machine are long

    @classmethod
    def here(cls) -> "Machine":
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
        return cls(_cpu(), default_workers(), gpu, platform.platform(), load)


@dataclass(frozen=True)
class Model:
    id: str
    sha256: str

    @classmethod
    def of(cls, weights: ModelWeights) -> "Model":
        return cls(weights.id, weights.sha256)


@contextmanager
def at_hand(model: str) -> Iterator[ModelWeights]:
    """The model, which containers can find by its id while this lasts, wherever its file is."""
    weights = find_model(model)
    before = os.environ.get(MODELS_VARIABLE)
    with TemporaryDirectory(prefix="histocodec-model-") as folder:
        (Path(folder) / f"{weights.id}.safetensors").write_bytes(weights.data)
        os.environ[MODELS_VARIABLE] = os.pathsep.join(filter(None, (folder, before)))
        try:
            yield weights
        finally:
            if before is None:
                del os.environ[MODELS_VARIABLE]
            else:
                os.environ[MODELS_VARIABLE] = before


def versions(peers: Iterable[Contender]) -> dict[str, str]:
    """Of this package, Python, the libraries that the time goes into, and the peers."""
    found = {name: metadata.version(name) for name in PACKAGES}
    own = {"histocodec": VERSION, "python": platform.python_version()}
    return {**own, **found, **{peer.name: peer.version for peer in peers}}


def _cpu() -> str:
    known = described(Path("/proc/cpuinfo").read_text(errors="replace")) if sys.platform == "linux" else ""
    return known or platform.processor() or platform.machine()


def described(cpuinfo: str) -> str:
    """The first processor's name, with family and model: "AMD EPYC" alone can be several generations, and
    not as fast as each other. Empty where there is no name."""
    pairs = [line.partition(":") for line in cpuinfo.splitlines()]
    first = {key.strip(): value.strip() for key, _, value in reversed(pairs)}
    if "model name" not in first:
        return ""
    numbers = [f"{short} {first[key]}" for key, short in (("cpu family", "family"), ("model", "model")) if key in first]
    return ", ".join([first["model name"], *numbers])
