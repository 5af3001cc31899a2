"""How large the activations of an analysis were in training: tensors of the model file, which decide about the units of
its bytes."""

HEADROOM = 1.1  # the largest byte stands for this many times a channel's largest activation in training
LEAST = 1e-6  # the least that it stands for: some channels are dead


def range_tensor(block: str, part: str) -> str:
    """The name of the model file's tensor (channels,) float32 with the largest magnitude that each channel of a
    residual block had in training: `part` is "seen" for what the block sees, "expand" or "depthwise" for the
    activations after those layers."""
    return f"reach.{block}.{part}"
