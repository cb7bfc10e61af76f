"""What a search has found so far, while it runs: merged over shards and daemons, for people, for the journal and for MLflow.

The journal gets a `search_progress` record at a bounded rate, which MLflow shows as `search/live/...` by images done, and, when a share of
the images of `SNAPSHOTS` is passed, the mean curves so far as points `search/after_N_percent/<layer>/cross_entropy` by generation. The
curve of all images, `search/<layer>/cross_entropy`, comes once, at the end of the phase: a key and step never have two values.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.journal import Point

if TYPE_CHECKING:
    from repsearch.rpc.v1 import jobs_pb2

RECORD_S = 5.0
"""Shortest time between two records; the first curves and the end come in any case."""
TEXT_S = 0.5
"""Seconds for which a text for people is good: merging takes milliseconds where there are thousands of shards."""
SNAPSHOTS = (1, 10, 25, 50, 75)
"""Percent of the images after which the curves so far are kept."""


@dataclass(frozen=True, kw_only=True)
class LiveState:
    """A search as a whole; a `search_progress` record of the journal.

    images of total: images done. layer, generation of generations: where the searcher is that reported last ("" before any did).
    cross_entropy, solved: per layer the mean best cross-entropy and the share with p(correct) > 0.5, over the images done.
    evaluations_per_s: of all searchers together, since this opening of the run began to search. seconds_left: None while unknown.
    """

    images: int
    total: int
    layer: str
    generation: int
    generations: int
    cross_entropy: Mapping[str, float]
    solved: Mapping[str, float]
    evaluations_per_s: float
    seconds_left: float | None


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What is known of one shard: images done, their mean curves and shares solved by layer."""

    images: int
    curves: Mapping[str, Sequence[float]]
    solved: Mapping[str, float]


LEAST_SHARE = 0.01
"""Of the images, before the time left is told: what starts up, such as the compiler of the search loops, would be taken for the pace."""


class LiveSearch:
    """Merges what the searchers report of the `total` images of a phase and hands it on.

    there: attributes of the shards that are committed already. record and points: what to do with news for the journal.
    """

    def __init__(
        self,
        total: int,
        there: Iterable[Mapping[str, Any]],
        *,
        record: Callable[[LiveState], None],
        points: Callable[[list[Point]], None],
    ) -> None:
        self._total = total
        self._there = [_Found(images=a["count"], curves=a["curves"], solved=a["solved"]) for a in there if "solved" in a]
        self._newest: dict[int, jobs_pb2.Progress] = {}
        self._position: jobs_pb2.SearchState | None = None
        self._record, self._points = record, points
        self._begin = time.monotonic()
        self._recorded = -math.inf
        self._curves_seen = False
        self._text, self._text_at = "", -math.inf
        # A snapshot says after how many images it was taken; what was passed before cannot be taken any more.
        self._snapshots = [percent for percent in SNAPSHOTS if percent > 100 * self._images() / max(1, total)]

    def heard(self, shard: int, progress: jobs_pb2.Progress | None) -> None:
        """Take the newest progress of a shard; None: it begins anew."""
        if progress is None:
            self._newest.pop(shard, None)
            return
        if not progress.HasField("search"):
            return
        self._newest[shard], self._position = progress, progress.search
        first_curves = not self._curves_seen and bool(progress.search.layers)
        self._curves_seen |= first_curves
        if first_curves or time.monotonic() - self._recorded >= RECORD_S:
            self._tell()
        self._snapshot()

    def end(self) -> None:
        """Tell the end of the phase."""
        if self._newest:
            self._tell()

    def text(self) -> str:
        """Return where the search is, for people; at most `TEXT_S` old."""
        if time.monotonic() - self._text_at >= TEXT_S:
            self._text, self._text_at = text_of(fields_of(self.state())), time.monotonic()
        return self._text

    def state(self) -> LiveState:
        """Return where the search is."""
        seconds = max(time.monotonic() - self._begin, 1e-9)
        ahead = sum(progress.search.ahead for progress in self._newest.values() if progress.done < progress.total)
        here = sum(progress.done for progress in self._newest.values()) + ahead
        left = max(0.0, self._total - self._images() - ahead)
        curves, solved = self._curves(), self._mean([found.solved for found in self._found()])
        return LiveState(
            images=self._images(),
            total=self._total,
            layer=self._position.layer if self._position else "",
            generation=self._position.generation if self._position else 0,
            generations=self._position.generations if self._position else 0,
            cross_entropy={layer: curve[-1] for layer, curve in curves.items()},
            solved={layer: float(share) for layer, share in solved.items()},
            evaluations_per_s=sum(progress.search.evaluations for progress in self._newest.values()) / seconds,
            seconds_left=left * seconds / here if here >= LEAST_SHARE * self._total else None,
        )

    def _tell(self) -> None:
        self._recorded = time.monotonic()
        self._record(self.state())

    def _snapshot(self) -> None:
        passed = [percent for percent in self._snapshots if 100 * self._images() >= percent * self._total]
        if passed:
            self._snapshots = [percent for percent in self._snapshots if percent not in passed]
            prefix = f"search/after_{passed[-1]}_percent"
            curves = self._curves()
            self._points([(f"{prefix}/{layer}/cross_entropy", step, value) for layer in curves for step, value in enumerate(curves[layer])])

    def _found(self) -> list[_Found]:
        """What is known of every shard with images done."""
        reported = [(progress.done, progress.search.layers) for progress in self._newest.values() if progress.done]
        return [
            *self._there,
            *(
                _Found(
                    images=images,
                    curves={layer.name: list(layer.cross_entropy) for layer in layers},
                    solved={layer.name: layer.solved for layer in layers},
                )
                for images, layers in reported
            ),
        ]

    def _images(self) -> int:
        return sum(found.images for found in self._there) + sum(progress.done for progress in self._newest.values())

    def _curves(self) -> dict[str, list[float]]:
        return {layer: [float(value) for value in curve] for layer, curve in self._mean([found.curves for found in self._found()]).items()}

    def _mean(self, values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Mean by layer over the shards, weighted by their images."""
        weights = [found.images for found in self._found()]
        layers = values[0] if values else ()
        return {layer: np.average([np.asarray(value[layer]) for value in values], axis=0, weights=weights) for layer in layers}


def fields_of(state: LiveState) -> dict[str, Any]:
    """Return the fields of the journal's record."""
    return asdict(state)


def text_of(record: Mapping[str, Any]) -> str:
    """Return the fields of a record for people: layer and generation, what was found by layer, rate, time left."""
    where = [f"{record['layer']} generation {record['generation']}/{record['generations']}"] if record["layer"] else []
    entropy, solved = record["cross_entropy"], record["solved"]
    found = [f"{layer} cross-entropy {entropy[layer]:.3f} ({solved[layer]:.0%} solved)" for layer in entropy]
    rate = [f"{record['evaluations_per_s']:,.0f} evaluations/s"] if record["evaluations_per_s"] else []
    left = [f"{duration(record['seconds_left'])} left"] if record["seconds_left"] is not None else []
    return ", ".join([*where, *found, *rate, *left])


def duration(seconds: float) -> str:
    """Return a time in the two units that matter."""
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
