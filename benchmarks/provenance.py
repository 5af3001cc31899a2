"""What a result has to say about where it was made, and how it is handed over."""

import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch

from histocodec.benchmarks.peers import JPEG2000
from histocodec.cli.report import plain, say
from histocodec.errors import HistocodecError
from histocodec.formats.files import write_atomically
from histocodec.models.weights import MODELS_VARIABLE, ModelWeights, find_model
from histocodec.version import VERSION
from histocodec.workers import default_workers

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


def versions() -> dict[str, str]:
    """Of this package, Python, the libraries that the time goes into, and the peers."""
    found = {name: metadata.version(name) for name in PACKAGES}
    return {"histocodec": VERSION, "python": platform.python_version(), **found, "openjpeg": JPEG2000.version}


def save(result: object, path: Path) -> None:
    """The result as JSON, whole or not at all."""
    text = json.dumps(plain(result), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())
    say(f"written to {path}")


def run(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> int:
    """The command as a program; its exit code. Our own errors are one line on stderr."""
    try:
        result = command.main(arguments, prog_name=f"python -m {name}", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except HistocodecError as exc:
        say(f"error: {exc}")
        return exc.exit_code
    except (KeyboardInterrupt, click.Abort):
        say("interrupted")
        return 130
    return result if isinstance(result, int) else 0


def _cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
