"""Waiting for what may come: how long, and with which pauses."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """`limit_s` seconds in all, with pauses that grow from `first_s` to `most_s`; `clock` and `pause` measure and make them."""

    limit_s: float
    first_s: float = 0.1
    most_s: float = 5.0
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep

    def pauses(self) -> Iterator[int]:
        """Return pauses, to be made by asking for the next; each gives the number of tries with the one that follows, 2 first."""
        return self._pauses(self.clock())

    def _pauses(self, began: float) -> Iterator[int]:
        wait = self.first_s
        for tries in itertools.count(2):
            if self.clock() - began + wait > self.limit_s:
                return
            # Of different lengths, so that many who were told to slow down do not come back together.
            self.pause(wait * random.uniform(0.5, 1.0))
            yield tries
            wait = min(2 * wait, self.most_s)

    def until_there(self, look: Callable[[], T]) -> T:
        """Return what `look` returns, looking again while it raises `FileNotFoundError`."""
        pauses = self.pauses()
        while True:
            try:
                return look()
            except FileNotFoundError:
                if next(pauses, None) is None:
                    raise


IMPATIENT = Patience(0.0)
