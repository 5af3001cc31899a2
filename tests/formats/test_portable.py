"""What only POSIX has is not needed: everything imports without it, and slides are encoded and read."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.modules import modules

MODULES = "fcntl grp posix pwd resource termios triton tty"
FUNCTIONS = """
fchmod fchown fdatasync fork getegid geteuid getgid getloadavg getpgid getuid killpg lchown major mkfifo mknod nice
posix_fadvise posix_fallocate pread preadv pwrite pwritev readv sched_getaffinity sched_setaffinity sendfile setsid
statvfs fstatvfs sync sysconf uname wait writev
O_CLOEXEC O_DIRECTORY O_DIRECT O_DSYNC O_NOATIME O_NOCTTY O_NOFOLLOW O_NONBLOCK O_PATH O_SYNC
"""
SIGNALS = "SIGALRM SIGCHLD SIGHUP SIGKILL SIGPIPE SIGQUIT SIGUSR1 SIGUSR2 pthread_kill pthread_sigmask setitimer"

# The libraries that others have made portable are imported first, as they are on this system, but for the one that
# locks: it chooses by what the system has.
HIDE = f"""
import os, signal, sys, warnings
import click, google_crc32c, imagecodecs, numba, numcodecs, numpy, openslide, PIL.Image, rich, safetensors, tifffile
import torch, zarr
for name in {MODULES!r}.split():
    sys.modules[name] = None
for name in list(sys.modules):
    if name.startswith(("triton.", "filelock")):
        del sys.modules[name]
for module, names in ((os, {FUNCTIONS!r}), (signal, {SIGNALS!r})):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
warnings.filterwarnings("ignore", message="only soft file lock is available")
"""


def run_without(code: str, *arguments: str | Path) -> str:
    """What the code prints in a process of its own that lacks what only POSIX has."""
    command = [sys.executable, "-W", "error", "-c", HIDE + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


APART = ("histocodec.formats.decode.gpu", "histocodec.formats.clients.wsidata_reader", "histocodec.__main__")


@pytest.mark.slow
def test_everything_imports() -> None:
    """But the kernels for NVIDIA GPUs, which need Triton, and are imported where there is such a GPU only, and the
    reader for wsidata, which needs that."""
    names = [name for name in modules() if not name.startswith("histocodec.codec.gpu.")]
    names = [name for name in names if name not in APART]
    code = "from importlib import import_module\nfor name in sys.argv[1:]: import_module(name)\nprint('imported')"
    assert run_without(code, *names) == "imported\n"


@pytest.mark.slow
def test_slides_are_encoded_and_read(tmp_path: Path, tiny_file: Path) -> None:
    code = """
import histocodec
from histocodec.cli.main import run
from histocodec.sources.synthetic import synthetic_slide
target, model = sys.argv[1:]
source = histocodec.ArraySlide(synthetic_slide(600, 400, seed=1))
for overwrite in (False, True):
    histocodec.encode(source, target, model=model, device="cpu", embed_model=True, workers=2, overwrite=overwrite)
assert run(["verify", target, "--device", "cpu"]) == 0
assert run(["info", target]) == 0
with histocodec.open(target, device="cpu") as slide:
    print(slide.read_region((0, 0), 0, (600, 400)).size)
"""
    assert run_without(code, tmp_path / "a.hc.zarr", tiny_file).splitlines()[-1] == "(600, 400)"
    assert [path.name for path in tmp_path.iterdir()] == ["a.hc.zarr"]
