"""Decode the kit in every variant of this machine, and let each decode what the others encode.

python -m tests.tools.conformance
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.tools.conformance.decode_kit import unpack
from tests.tools.conformance.integer_pixels import EXPECTED_SHA256

ROOT = Path(__file__).resolve().parents[3]

# The environment of each variant: how many threads, and which instructions PyTorch, oneDNN and OpenBLAS may use.
VARIANTS: dict[str, dict[str, str]] = {
    "one-thread": {"OMP_NUM_THREADS": "1"},
    "eight-threads": {"OMP_NUM_THREADS": "8"},
    "no-avx": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OPENBLAS_CORETYPE": "Nehalem"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "Haswell"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "OPENBLAS_CORETYPE": "SkylakeX"},
    "no-compiler": {"NUMBA_DISABLE_JIT": "1"},  # latents of the smallest container only: it is slow
}


def decode(folder: Path, variant: str, *options: str) -> dict[str, dict]:
    """The findings of `decode_kit` in a process of its own, by the container's name."""
    arguments = [str(folder), *(["--latents-only"] if variant == "no-compiler" else []), *options]
    found: dict[str, dict] = json.loads(output_of("decode_kit", variant, arguments))
    return found


def integer_pixels(variant: str, *options: str) -> str:
    """The SHA-256 that `integer_pixels` prints in a process of its own."""
    return output_of("integer_pixels", variant, options).strip()


def output_of(module: str, variant: str, options: Sequence[str]) -> str:
    """The output of a module of this package, run in a variant. Raises AssertionError with its errors if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.tools.conformance.{module}", *options],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, **VARIANTS.get(variant, {})}, timeout=600,
    )  # fmt: skip
    if done.returncode:
        raise AssertionError(f"{variant}: {done.stderr}")
    return done.stdout


def main() -> None:
    import torch

    variants = {**dict.fromkeys(VARIANTS, ()), "compiled": ("--compile",)}
    if torch.cuda.is_available():
        variants["cuda"] = ("--device", "cuda")
    else:
        print("cuda: no device here, not checked")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unpack(folder)
        for variant, options in variants.items():
            if variant != "no-compiler":
                decode(folder, variant, "--encode", f"by-{variant}", *options)
        found = {variant: decode(folder, variant, *options) for variant, options in variants.items()}
    for variant in variants:
        same = integer_pixels(variant, *(["cuda"] if variant == "cuda" else [])) == EXPECTED_SHA256
        print(f"{variant}: {'the same pixels' if same else 'OTHER PIXELS'} from integer synthesis")
        if not same:
            raise SystemExit(1)
    first = found["one-thread"]
    for variant, containers in found.items():
        same = all(
            facts["latents"] == facts["fast"] == first[container]["latents"] and facts["rewritten"]
            for container, facts in containers.items()
        )
        distances = {
            dtype: (max(f["pixels"][dtype][0] for f in containers.values()),
                    max(f["pixels"][dtype][1] for f in containers.values()))
            for dtype in next(iter(containers.values()))["pixels"]
        }  # fmt: skip
        pixels = [f"{name} within {most} ({100 * share:.2g} % beyond 1)" for name, (most, share) in distances.items()]
        verdict = "the same latents" if same else "OTHER LATENTS"
        print(f"{variant}: {len(containers)} containers, {verdict}; pixels: {', '.join(pixels) or 'not decoded'}")
        if not same:
            sys.exit(1)


if __name__ == "__main__":
    main()
