"""What the runs below a folder tell Prometheus: read from what they write, when asked; runs need not know of it.

A run that nobody works on is told once it has been seen alive, until the exporter ends, so that its last state can be seen and alerted on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.status import status_of
from repsearch.errors import RepSearchError
from store import layout

PREFIX = "repsearch_run"
STATES = ("running", "finished", "failed", "killed", "interrupted")
GAUGES = {
    "round": "Number of the newest round, from 0",
    "rounds_finished": "Rounds that are done",
    "rounds_planned": "Most rounds of the run",
    "shards_done": "Shards of the newest round that are committed",
    "shards": "Shards of a round",
    "epoch": "Epochs of the newest round that are done",
    "epochs": "Epochs of a round",
    "evaluations": "Candidate evaluations per image, of all finished rounds",
    "test_accuracy": "Test accuracy of the newest measured round",
    "examples_per_second": "Pace of learning",
    "seconds_left": "Of the search or the learning that goes on",
    "seconds_since_last_record": "Since the journal grew",
    "term": "Openings of the run",
    "searcher_waited_seconds": "A streamed run's searchers, for the learner",
    "learner_waited_seconds": "A streamed run's learner, for searchers",
}


class RunsCollector:
    """The runs in `root` as metrics; all that are there, or those that have been running since the first look."""

    def __init__(self, root: Path) -> None:
        self._root, self._seen = root, set[Path]()

    def collect(self) -> Iterable[Any]:
        """Yield the metrics as they are now."""
        from prometheus_client.core import GaugeMetricFamily

        found = list(self._statuses())
        state = GaugeMetricFamily(f"{PREFIX}_state", "1 for the state that the run is in", labels=["run", "state"])
        for status in found:
            for name in STATES:
                state.add_metric([status["name"], name], float(status["state"] == name))
        yield state
        for field, text in GAUGES.items():
            gauge = GaugeMetricFamily(f"{PREFIX}_{field}", text, labels=["run"])
            for status in found:
                if status.get(field) is not None:
                    gauge.add_metric([status["name"]], float(status[field]))
            yield gauge

    def _statuses(self) -> Iterable[Mapping[str, Any]]:
        for document in sorted(self._root.glob(f"*/{layout.RUN_DOCUMENT}")):
            try:
                status = status_of(document.parent)
            except (RepSearchError, OSError):  # being made, or being removed
                continue
            if status["state"] == "running" or document.parent in self._seen:
                self._seen.add(document.parent)
                yield status


def serve(root: Path, listen: str) -> None:
    """Serve the metrics of the runs in `root` at `listen`, a loopback address, until interrupted."""
    import threading

    from repsearch.serving.metrics import check_metrics, serve_metrics
    from repsearch.serving.protection import Protection

    check_metrics(listen, Protection())
    address, stop = serve_metrics([RunsCollector(root)], listen, Protection())
    print(f"metrics of the runs in {root} are at {address}/metrics", flush=True)
    try:
        threading.Event().wait()
    finally:
        stop()
