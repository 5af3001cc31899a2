"""Learning-rate schedules."""

import math
from dataclasses import dataclass

from histocodec.errors import UsageError

KINDS = ("wsd", "cosine")


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes over `steps` steps: it rises linearly over `warmup` steps and then,

    - as "wsd" (warm-up, stable, decay), stays, and falls linearly to zero over the last `decay` steps;
    - as "cosine", falls to zero along a cosine.

    The last `enlarged` steps are on larger crops. Raises UsageError where these do not fit into `steps`.
    """

    steps: int
    warmup: int = 200
    decay: int = 0
    kind: str = "wsd"
    enlarged: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"schedule is {self.kind!r}; {' or '.join(KINDS)} is allowed")
        if self.steps < 1:
            raise UsageError(f"steps is {self.steps}; at least 1 is needed")
        if self.warmup < 0:
            raise UsageError(f"warmup is {self.warmup}; at least 0 is needed")
        for name, count in (("decay", self.decay), ("enlarged", self.enlarged)):
            if not 0 <= count <= self.steps:
                raise UsageError(f"{name} is {count}; at least 0 and at most all {self.steps} steps are allowed")

    def factor(self, step: int) -> float:
        """The share of the highest learning rate at a step (0, 1, …)."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        if self.kind == "cosine":
            return warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return warm * (min(1.0, (self.steps - step) / self.decay) if self.decay else 1.0)
