"""The device that the networks run on, and its fastest floating-point type."""

import ctypes
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from histocodec.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    import torch

_DRIVERS = ("libcuda.so.1", "nvcuda.dll")  # without one of these, torch finds no CUDA device …
_AMD_DRIVER = "/dev/kfd"  # … and without this no ROCm device


def means_cpu(name: str) -> bool:
    """Whether `choose_device` would choose the CPU; found out without torch where it is not loaded yet. An "auto" that
    cannot be told without torch gives False."""
    if name != "auto":
        return name == "cpu"
    if sys.modules.get("torch") is not None:
        return choose_device(name).type == "cpu"
    return find_spec("torch") is None or not _has_driver()


def _has_driver() -> bool:
    for library in _DRIVERS:
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return True
    return os.path.exists(_AMD_DRIVER)


def choose_device(name: str) -> "torch.device":
    """The device that a user names: "auto" (a GPU where there is one, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises UsageError for any other name, and UnsupportedError for a GPU that this machine does not have.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise UsageError(f"device {name!r}; auto, cpu, cuda or cuda:N is allowed") from exc
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r}; auto, cpu, cuda or cuda:N is allowed")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnsupportedError(f"device {name!r} does not exist: {torch.cuda.device_count()} CUDA devices were found")
    return device


def fastest_dtype(device: "torch.device") -> "torch.dtype":
    """bfloat16 where the device multiplies it in hardware (on a CPU it takes a third of float32's time), else
    float32."""
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def other_dtype(device: "torch.device") -> "torch.dtype":
    """Of bfloat16 and float32, the one that is not `fastest_dtype`: what another kind of machine may have computed a
    container with."""
    import torch

    return torch.float32 if fastest_dtype(device) == torch.bfloat16 else torch.bfloat16
