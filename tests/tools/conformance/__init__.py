"""The conformance kit: containers that every machine must decode to the same integers, and nearly the same pixels.

    kit/model.safetensors.gz    a tiny model of seeded weights
    kit/NAME.zarr.zip           containers, of made-up images
    kit/NAME.npy                every eleventh pixel of level 0, synthesised in float64
    kit/facts.json              SHA-256 of the model and of each container's latents, and the pixels' tolerances

`make` wrote it, once; `one` decodes it in this process; `python -m tests.tools.conformance` runs that in every variant
there is, and lets each decode what each other one encodes. Another decoder can be held to it, too.
"""

from pathlib import Path

KIT = Path(__file__).parent / "kit"
MODEL_ID = "conformance-1"
STEP = 11  # of the pixels that are kept
