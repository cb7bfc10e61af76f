"""Metric points, each logged once: MLflow keeps a step that is logged twice twice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

BATCH = 1000
"""Most metrics in a request, by MLflow's limit."""


@dataclass(frozen=True)
class Value:
    """One value of a metric; time in Unix seconds, from the journal, so that a repetition is the same row to MLflow's database."""

    key: str
    step: int
    value: float
    time: float


@dataclass
class MetricLog:
    """Collects values per MLflow run and logs them in batches, leaving out steps that are there already.

    fresh: runs that this process created and that have no history to look at.
    """

    client: Any
    fresh: set[str] = field(default_factory=set)
    _pending: dict[str, list[Value]] = field(default_factory=dict)
    _known: dict[tuple[str, str], set[int]] = field(default_factory=dict)

    def add(self, run: str, values: Iterable[Value]) -> None:
        """Collect `values` for MLflow run `run`."""
        self._pending.setdefault(run, []).extend(values)

    def flush(self) -> None:
        """Log everything collected. After an exception make a new log: what reached the server is unknown."""
        from mlflow.entities import Metric

        for run, values in self._pending.items():
            new = [value for value in values if self._is_new(run, value)]
            for first in range(0, len(new), BATCH):
                batch = [Metric(value.key, value.value, round(value.time * 1000), value.step) for value in new[first : first + BATCH]]
                self.client.log_batch(run, metrics=batch)
        self._pending.clear()

    def _is_new(self, run: str, value: Value) -> bool:
        steps = self._known.get((run, value.key))
        if steps is None:
            history = [] if run in self.fresh else self.client.get_metric_history(run, value.key)
            steps = self._known[run, value.key] = {metric.step for metric in history}
        if value.step in steps:
            return False
        steps.add(value.step)
        return True
