"""What a search strategy holds in memory, in units that do not depend on the machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]
FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Memory of a strategy at one search layer; counts are of float32 representations per example.

    candidates: the most that are evaluated together.
    held: what the state keeps from one generation to the next.
    working: the most that proposing or selecting takes beside candidates and state.
    results, seeds: what it returns, and what the next layer starts from.
    shared: bytes that all examples share, such as tables of noise.
    """

    candidates: int
    held: int
    working: int
    results: int = 1
    seeds: int = 1
    shared: int = 0


def footprint_of(strategy: Any, position: int, shape: Shape, *, classes: int, results: int) -> Footprint:
    """Return the footprint that `strategy` gives; one that gives none is taken to keep and to move all that it evaluates together."""
    if hasattr(strategy, "footprint"):
        given: Footprint = strategy.footprint(position, shape, classes=classes, results=results)
        return given
    together = math.ceil(strategy.evaluations(position) / max(1, strategy.generations_at(position)))
    together = max(1, results, strategy.starts(position), together)
    return Footprint(candidates=together, held=2 * together, working=4 * together, results=results, seeds=together)


def groups_of(shape: Shape) -> tuple[int, int]:
    """Return (G, M) of a representation: channels and positions of a map; (1, size) of a vector, of logits or of a 1x1 map."""
    positions = math.prod(shape[1:])
    return (shape[0], positions) if len(shape) == 3 and positions > 1 else (1, shape[0])


def table_bytes(shape: Sequence[int], rows: int) -> int:
    """Return the bytes of a noise table for representations of `shape`; see `searcher.noise`."""
    groups, size = groups_of(tuple(shape))
    return max(rows, 2 * groups) * (size + 1) * FLOAT_BYTES
