"""How long tasks take, to tell which of them takes far longer."""

from __future__ import annotations

from collections import deque
from statistics import median

LOOK = 5.0  # seconds between two looks for what is late
SLOW = 60.0  # seconds that a task takes at least before it counts as late
_TIMES = 3.0  # what others take
_SHORT = 0.5  # seconds, beside which it counts that a worker waits for its next task
_LAST = 256  # tasks that are looked back on


class Pace:
    """What the last tasks took."""

    def __init__(self) -> None:
        self._took: deque[float] = deque(maxlen=_LAST)

    def add(self, seconds: float) -> None:
        """Note what a task took from when it was handed out."""
        self._took.append(seconds)

    @property
    def short(self) -> bool:
        """Whether tasks are so short that a worker should have its next one before it has ended the first."""
        return bool(self._took) and median(self._took) < _SHORT

    def late(self, seconds: float) -> bool:
        """Whether a task that was handed out so long ago takes far longer than others did; never if none has ended."""
        return bool(self._took) and seconds > max(SLOW, _TIMES * median(self._took))
