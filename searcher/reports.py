"""How far a search job is, told to whoever watches it at a bounded rate, also within a group of tiles."""

from __future__ import annotations

import time
from collections.abc import Sequence

from repsearch.rpc.v1 import jobs_pb2
from repsearch.serving import JobContext
from searcher.search import Position, SearchProgress

REPORT_S = 0.2
"""Shortest time between two reports; the last one comes in any case."""


class Reports:
    """Tells `context` of the search of `count` images at the layers `names`, and stops the search if the job is cancelled."""

    def __init__(self, context: JobContext, count: int, names: Sequence[str]) -> None:
        self._context, self._count, self._names = context, count, names
        self._done = SearchProgress(done=0, curves=[], solved=[], evaluations=0, seconds=0.0)
        self._position = Position(layer=0, generation=0, generations=0, examples=0.0)
        self._told = time.monotonic()

    def progress(self, progress: SearchProgress) -> None:
        """Take note that a group is done."""
        self._context.check()
        self._done = progress
        self._tell(0.0, at_once=progress.done == self._count)

    def position(self, position: Position) -> None:
        """Take note that a generation is over."""
        self._context.check()
        self._position = position
        self._tell(position.examples)

    def _tell(self, ahead: float, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now - self._told >= REPORT_S:
            self._told = now
            self._context.progress(self._done.done, self._count, unit="images", text=self._text(), search=self._state(ahead))

    def _state(self, ahead: float) -> jobs_pb2.SearchState:
        done, at = self._done, self._position
        return jobs_pb2.SearchState(
            layers=[
                jobs_pb2.LayerState(name=name, cross_entropy=curve, solved=solved)
                for name, curve, solved in zip(self._names, done.curves, done.solved, strict=False)
            ],
            evaluations=done.evaluations,
            ahead=ahead,
            layer=self._names[at.layer],
            generation=at.generation,
            generations=at.generations,
        )

    def _text(self) -> str:
        done, at = self._done, self._position
        where = f"{self._names[at.layer]} generation {at.generation}/{at.generations}"
        layers = zip(self._names, done.curves, done.solved, strict=False)
        found = [f"{name} {curve[-1]:.3f} ({solved:.0%} solved)" for name, curve, solved in layers]
        rate = [f"{done.evaluations / max(done.seconds, 1e-9):,.0f} evaluations/s"] if done.evaluations else []
        return ", ".join([where, *found, *rate])
