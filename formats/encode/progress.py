"""How far an encode has come: over everything for the bar, within the stage for the speed."""

import time
from collections.abc import Callable

from histocodec.formats.encode.options import EncodeProgress


class Clock:
    """Turns pixels done into calls of `progress`. `total` is the number of pixels to do in all stages, as far as it is
    known. The clock starts in the stage "prepare"."""

    def __init__(self, progress: Callable[[EncodeProgress], None] | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0
        self._stage, self._began, self._stage_done = "prepare", time.perf_counter(), 0

    def start(self) -> None:
        """Reports that nothing is done yet."""
        self._report()

    def add(self, stage: str, pixels: int) -> None:
        """Counts pixels that were done in `stage`. A new stage begins with its first call."""
        if stage != self._stage:
            self._stage, self._began, self._stage_done = stage, time.perf_counter(), 0
        self.done += pixels
        self._stage_done += pixels
        self._report()

    def skip(self, stage: str, pixels: int) -> None:
        """Counts pixels that need no work, or that an interrupted run has done; they do not count for the speed."""
        self.done += pixels
        self.add(stage, 0)

    def extend(self, pixels: int) -> None:
        """Raises the total by pixels that it did not include."""
        self.total += pixels

    def _report(self) -> None:
        if self.progress is not None:
            seconds = time.perf_counter() - self._began
            speed = self._stage_done / seconds if seconds > 0 else 0.0
            remaining = (self.total - self.done) / speed if speed > 0 else None
            self.progress(EncodeProgress(self._stage, self.done, self.total, speed / 1e6, remaining))
