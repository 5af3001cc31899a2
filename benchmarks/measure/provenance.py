"""Where and with what a result was made: the machine, the model and the versions."""

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
    """The machine that this process runs on."""

    cpu: str
    cores: int  # that this process may use
    gpu: str | None
    system: str
    load: float | None  # of the last minute, at the start: a busy machine makes times long

    @classmethod
    def here(cls) -> "Machine":
        """Describe this machine."""
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
        return cls(_cpu(), default_workers(), gpu, platform.platform(), load)

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores, load {self.load}; GPU: {self.gpu or 'none'}"


@dataclass(frozen=True)
class Model:
    """A model by its id and the SHA-256 of its file."""

    id: str
    sha256: str

    @classmethod
    def of(cls, weights: ModelWeights) -> "Model":
        """The id and the hash of these weights."""
        return cls(weights.id, weights.sha256)


@contextmanager
def installed(model: str) -> Iterator[ModelWeights]:
    """Make a model, an id or a file, available by its id for as long as this lasts, so that containers find it."""
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
    """The versions of this package, Python, the libraries that take the time, and the peers."""
    libraries = {name: metadata.version(name) for name in PACKAGES}
    return {
        "histocodec": VERSION,
        "python": platform.python_version(),
        **libraries,
        **{peer.name: peer.version for peer in peers},
    }


def _cpu() -> str:
    name = cpu_name(Path("/proc/cpuinfo").read_text(errors="replace")) if sys.platform == "linux" else ""
    return name or platform.processor() or platform.machine()


def cpu_name(cpuinfo: str) -> str:
    """The first processor's name in the text of /proc/cpuinfo, with family and model: "AMD EPYC" alone can be several
    generations that differ in speed. Empty where there is no name."""
    pairs = [line.partition(":") for line in cpuinfo.splitlines()]
    first = {key.strip(): value.strip() for key, _, value in reversed(pairs)}
    if "model name" not in first:
        return ""
    numbers = [f"{short} {first[key]}" for key, short in (("cpu family", "family"), ("model", "model")) if key in first]
    return ", ".join([first["model name"], *numbers])
