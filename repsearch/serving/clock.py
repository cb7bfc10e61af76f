"""The time that each step of an item of a stream job takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StepClock:
    """Counts seconds by step, item after item, and the time between items."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._seconds: dict[str, float] = {}

    def begin(self, arrival: float) -> None:
        """Begin an item that came at `arrival` (of `time.monotonic`)."""
        self._seconds = {"waited": max(0.0, arrival - self._last)}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count the time of the context as that of the step `name`."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = time.monotonic() - begin

    def end(self, arrival: float) -> dict[str, float]:
        """End the item; return the seconds of its steps, of waiting for it ("waited"), and from its arrival to now ("inside")."""
        self._last = time.monotonic()
        return {**self._seconds, "inside": self._last - arrival}
