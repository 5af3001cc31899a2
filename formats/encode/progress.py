"""How far an encode is: over everything for the bar, within the stage for the speed."""

import time
from collections.abc import Callable

from histocodec.formats.encode.options import EncodeProgress


class Clock:
    """Turns pixels done into progress. `total` is all of them, as far as is known."""

    def __init__(self, progress: Callable[[EncodeProgress], None] | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0
        self.begin("prepare")

    def begin(self, stage: str) -> None:
        """Starts a stage, whose speed is measured from here."""
        self._stage, self._began, self._stage_done = stage, time.perf_counter(), 0
        self._report()

    def add(self, stage: str, pixels: int) -> None:
        """Pixels that were done in a stage, which begins with the first of them."""
        if stage != self._stage:
            self._stage, self._began, self._stage_done = stage, time.perf_counter(), 0
        self.done += pixels
        self._stage_done += pixels
        self._report()

    def skip(self, stage: str, pixels: int) -> None:
        """Pixels that need no work, or that an interrupted run has done: they count, but not for the speed."""
        self.done += pixels
        self.add(stage, 0)

    def extend(self, pixels: int) -> None:
        """Adds pixels to the total that it did not include."""
        self.total += pixels

    def _report(self) -> None:
        if self.progress is not None:
            seconds = time.perf_counter() - self._began
            speed = self._stage_done / seconds if seconds > 0 else 0.0
            remaining = (self.total - self.done) / speed if speed > 0 else None
            self.progress(EncodeProgress(self._stage, self.done, self.total, speed / 1e6, remaining))
