"""Shards as large as a searcher does in about `TARGET_S` seconds, so that a kill loses little at any scale (`shard_examples = "auto"`).

The first shard of a round is small; each searcher's next one follows from how long its last one took, and is at most `GROWTH` times as
large. Results do not depend on any of this. Examples that a shard of an earlier opening of the run has are not searched again, whatever
its size was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

TARGET_S = 30.0
"""Seconds that a shard is to take; half of what may be lost, because the next shard may be slower."""
CAUTION = 8.0
"""A round may be as many times slower than the one before, on another network, before its first shard takes too long."""
FIRST = 16
"""Examples of the first shard of all."""
GROWTH = 8
MOST = 8192
"""Examples of a shard at most: what a learner reads at a time grows with it."""


class AutoShards:
    """Hands out the examples [first, end) without those in `taken` (first, count), in order, in shards of the right size.

    pace: seconds per example of an earlier round; None if there is none. searchers: how many share the work.
    """

    def __init__(self, first: int, end: int, taken: Iterable[tuple[int, int]], *, pace: float | None, searchers: int) -> None:
        self._gaps = _gaps(first, end, taken)
        self._searchers = max(1, searchers)
        self._first = FIRST if pace is None else _bounded(TARGET_S / CAUTION / pace)
        self._sizes: dict[str, int] = {}

    def next(self, address: str) -> tuple[int, int] | None:
        """Return first and count of the next shard for the searcher at `address`; None if all are handed out."""
        if not self._gaps:
            return None
        first, end = self._gaps[0]
        left = sum(end - first for first, end in self._gaps)
        # At the end everybody gets a part.
        size = min(self._sizes.get(address, self._first), max(FIRST, math.ceil(left / self._searchers)))
        count = min(size, end - first)
        if first + count == end:
            self._gaps.pop(0)
        else:
            self._gaps[0] = (first + count, end)
        return first, count

    def took(self, address: str, count: int, seconds: float) -> float:
        """Take note that the searcher at `address` took `seconds` for a shard of `count` examples; return its pace."""
        pace = max(seconds, 1e-6) / count
        self._sizes[address] = min(_bounded(TARGET_S / pace), GROWTH * max(count, FIRST))
        return pace


def _bounded(size: float) -> int:
    return max(1, min(MOST, int(size)))


def _gaps(first: int, end: int, taken: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what of [first, end) is not in `taken`, which does not overlap."""
    gaps = []
    for begin, count in sorted(taken):
        if begin > first:
            gaps.append((first, begin))
        first = begin + count
    return [*gaps, (first, end)] if first < end else gaps


def without_overlap(spans: Iterable[tuple[int, int, int]]) -> list[int]:
    """Return the numbers of those of `spans` (first, count, number) that are used: by first example, none that begins within another."""
    used, end = [], -1
    for first, count, number in sorted(spans, key=lambda span: (span[0], -span[1], span[2])):
        if first >= end:
            used.append(number)
            end = first + count
    return used
