"""The conformance kit: containers whose latents every machine must decode to the same integers, and pixels nearly so.

    kit/model.safetensors.gz    a tiny model of seeded weights
    kit/NAME.zarr.zip           containers of synthetic images
    kit/NAME.npy                every eleventh pixel of level 0, synthesised in float64
    kit/facts.json              SHA-256 of the model and of each container's latents, and the pixels' tolerances
    kit-2/NAME-2.hcz            the same images in containers of version 2, as one file each
    kit-2/NAME-2.npy, facts.json   likewise

A container of version 2 is unpacked, too: NAME-2.hc.zarr. `make` wrote each kit, once, that of version 1 when that was
written. `decode_kit` decodes it in one process, and `integer_pixels` checks that integer synthesis
gives the same pixels everywhere. `python -m tests.tools.conformance` runs both in every variant that this machine has,
and lets each variant decode what each of the others encodes. Use the kit to test another decoder, too.
"""

from pathlib import Path

KIT = Path(__file__).parent / "kit"  # of version 1, and the model of both
KIT_2 = Path(__file__).parent / "kit-2"
MODEL_ID = "conformance-1"
STEP = 11  # the kit keeps every eleventh pixel in each direction, so that it stays small
