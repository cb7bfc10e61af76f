"""What each journal record means in MLflow. Applying a record twice has the effect of applying it once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.journal import Record
from orchestrator.tracking.connect import Connection
from orchestrator.tracking.describe import dataset_inputs, flat_params, run_tags
from orchestrator.tracking.metrics import MetricLog, Value
from orchestrator.tracking.runs import Runs
from orchestrator.tracking.state import State
from orchestrator.tracking.system import SystemMetrics
from repsearch.failpoints import reach

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger("orchestrator.tracking")

CHILD_ROUNDS = 100
"""Rounds that get a child run; MLflow's interface becomes slow with thousands of runs. The parent has every round's metrics."""
CURVE_ROUNDS = 500
"""Rounds on the run's curves, beside those that were measured."""
FIGURE_INTERVAL_S = 10.0
"""The parent's figure is redrawn at most this often, and at the end."""
PARAMS_BATCH = 100
ERROR_LENGTH = 2000


@dataclass
class Story:
    """What the journal told so far, applied or not: the source of figures, tags and the final network."""

    started: Record = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    curves: dict[int, dict[str, dict[int, float]]] = field(default_factory=dict)
    """By round, key and step; dropped once the round's figure is drawn."""
    reports: dict[int, Record] = field(default_factory=dict)
    """`round_finished` records by round."""
    network: Record = field(default_factory=dict)
    """The newest `network_ready` record."""
    running: bool = False
    """Started and not finished."""

    @property
    def windowed(self) -> bool:
        """Whether rounds are windows of the training set, of which there are many."""
        return self.started["config"]["rounds"].get("examples_per_round") is not None

    def add(self, record: Record) -> None:
        """Take in one record."""
        kind = record["kind"]
        if kind == "run_started":
            self.started, self.tags, self.running = record, run_tags(record), True
        elif kind == "point":
            self.curves.setdefault(record["round"], {}).setdefault(record["key"], {})[record["step"]] = record["value"]
        elif kind == "round_finished":
            self.reports[record["round"]] = record
        elif kind == "network_ready":
            self.network = record
        elif kind == "run_finished":
            self.running = False


class Mirror:
    """Applies records to MLflow, in order, through one connection; after an exception it is of no more use.

    live: the run goes on now, so its host is sampled.
    """

    def __init__(self, folder: Path, connection: Connection, state: State, *, live: bool, system: SystemMetrics) -> None:
        self.folder = folder
        self.connection = connection
        self.state = state
        self.live = live
        self.system = system
        self.story = Story()
        self.runs = Runs(connection, state)
        self.metrics = MetricLog(connection.client, fresh=self.runs.created)
        self._open: set[int] = set()
        self._reached = -1
        self._figure_due = False
        self._figure_time = -FIGURE_INTERVAL_S
        self._apply: dict[str, Callable[[Record], None]] = {
            "run_started": self._run_started,
            "round_started": self._round_started,
            "point": self._point,
            "search_progress": self._search_progress,
            "stream_progress": self._stream_progress,
            "round_finished": self._round_finished,
            "network_ready": lambda record: None,
            "incident": lambda record: None,
            "shard_size": lambda record: None,
            "analysis_ready": self._analysis_ready,
            "run_finished": self._run_finished,
        }

    def apply(self, records: Sequence[Record], stop: Callable[[], bool] = lambda: False) -> None:
        """Apply the records that the state does not count yet; earlier ones are only taken in. Ends early once `stop` is true."""
        for record in records:
            if stop():
                return
            self._apply_one(record)
        self._save_progress()
        pause = FIGURE_INTERVAL_S if self.live else 0.0
        if self._figure_due and time.monotonic() - self._figure_time >= pause:
            self._log_run_figure()
        if self.live and self.story.running:
            self.system.start(self.state.parent, self.connection.uri)

    def _apply_one(self, record: Record) -> None:
        kind = record["kind"]
        self.story.add(record)
        if record["n"] <= self.state.applied:
            if kind == "round_finished":
                self.story.curves.pop(record["round"], None)
            return
        # Points, and rounds of one window, are logged in batches; what follows points may end the run that they belong to.
        batched = kind == "point" or (kind == "round_finished" and self.story.windowed)
        if not batched:
            self._save_progress()
        reach("tracking.apply.before")
        self._apply[kind](record)
        reach("tracking.apply.after")
        self._reached = record["n"]
        if not batched:
            self._save_progress()

    def _save_progress(self) -> None:
        self.metrics.flush()
        if self._reached > self.state.applied:
            self.state.applied = self._reached
            self.state.save(self.folder)

    def _run_started(self, record: Record) -> None:
        parent = self.runs.parent(run_id=record["run_id"], name=record["name"], tags=self.story.tags, start=record["time"])
        self.state.save(self.folder)
        self._set_tags(parent, self.story.tags)
        self._log_params(parent, flat_params(record["config"]))
        client = self.connection.client
        client.log_dict(parent, record["config"], "config.json")
        client.log_inputs(parent, dataset_inputs(record))

    def _round_started(self, record: Record) -> None:
        child = self._child(record)
        if child:
            self._open_child(record["round"])

    def _point(self, record: Record) -> None:
        self._log_to_child(record, [Value(record["key"], record["step"], record["value"], record["time"])])

    def _search_progress(self, record: Record) -> None:
        found = {f"{layer}/cross_entropy": value for layer, value in record["cross_entropy"].items()}
        found |= {f"{layer}/solved": value for layer, value in record["solved"].items()}
        if found:
            found |= {name: record[name] for name in ("evaluations_per_s", "seconds_left") if record[name] is not None}
        # By images done: what a resumed run searches again is at steps that are there already, and keeps their values.
        self._log_to_child(record, [Value(f"search/live/{name}", record["images"], value, record["time"]) for name, value in found.items()])

    def _stream_progress(self, record: Record) -> None:
        total = max(1, sum(record["staleness"].values()))
        found = {f"stream/staleness_{rounds}": count / total for rounds, count in record["staleness"].items()}
        found |= {f"stream/{name}": record[name] for name in ("searcher_waited_s", "learner_waited_s", "rounds_per_s")}
        self.metrics.add(self.state.parent, [Value(name, record["round"], value, record["time"]) for name, value in found.items()])

    def _log_to_child(self, record: Record, values: Sequence[Value]) -> None:
        child = self._child(record)
        if child:
            if record["round"] not in self.story.reports:
                self._open_child(record["round"])
            self.metrics.add(child, values)

    def _open_child(self, round: int) -> None:
        # A resumed round is not started again in the journal; its first new point tells that it goes on.
        if round not in self._open:
            self._open.add(round)
            self.runs.reopen_child(round)
            self._set_tags(self.state.children[round], self.story.tags)

    def _round_finished(self, record: Record) -> None:
        round = record["round"]
        values = self._round_values(record)
        if self._sampled(record):
            self.metrics.add(self.state.parent, values)
        child = self._child(record)
        curves = self.story.curves.pop(round, {})
        if child:
            self.metrics.add(child, values)
            self.metrics.flush()
            figure = self._drawn("round", lambda: _plots().round_figure(round, curves))
            self._log_figure(child, figure, "round.png")
            self.runs.end(child, "FINISHED", record["time"])
        self._figure_due = True

    def _analysis_ready(self, record: Record) -> None:
        folder = self.folder / record["path"]
        if folder.is_dir():
            self.connection.client.log_artifacts(self.state.parent, str(folder), record["path"])

    def _run_finished(self, record: Record) -> None:
        self.system.stop()
        if self._figure_due:
            self._log_run_figure()
        if record["status"] == "FINISHED" and self.story.network:
            self._log_network()
        self._set_error(record["error"])
        self._open.clear()
        self.runs.end_open_children(record["status"], record["time"])
        self.runs.end(self.state.parent, record["status"], record["time"])

    def _child(self, record: Record) -> str:
        if record["round"] >= CHILD_ROUNDS or self.story.windowed:
            return ""
        known = record["round"] in self.state.children
        child = self.runs.child(record["round"], tags=self.story.tags, start=record["time"])
        if not known:
            self.state.save(self.folder)
        return child

    def _sampled(self, record: Record) -> bool:
        """Whether the round is on the run's curves: all rounds if they are few, else every so many, and those that were measured."""
        every = -(-self.story.started["config"]["rounds"]["count"] // CURVE_ROUNDS)
        return record["round"] % every == 0 or "test/accuracy" in record["report"]["metrics"]

    def _round_values(self, record: Record) -> list[Value]:
        return [Value(key, record["round"], value, record["time"]) for key, value in record["report"]["metrics"].items()]

    def _set_tags(self, run: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        if tags:
            self.connection.client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items()])

    def _set_error(self, error: str) -> None:
        parent = self.state.parent
        if error:
            self._set_tags(parent, {"error": error[:ERROR_LENGTH]})
        elif "error" in self.connection.client.get_run(parent).data.tags:
            self.connection.client.delete_tag(parent, "error")

    def _log_params(self, run: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        # A param keeps its first value in MLflow; a value that a resume changed becomes a tag.
        there = self.connection.client.get_run(run).data.params
        self._set_tags(run, {f"resumed.{key}": text for key, text in params.items() if there.get(key, text) != text})
        new = [Param(key, text) for key, text in params.items() if key not in there]
        for first in range(0, len(new), PARAMS_BATCH):
            self.connection.client.log_batch(run, params=new[first : first + PARAMS_BATCH])

    def _log_run_figure(self) -> None:
        rounds = {round: record["report"]["metrics"] for round, record in sorted(self.story.reports.items())}
        self._log_figure(self.state.parent, self._drawn("run", lambda: _plots().run_figure(rounds)), "rounds.png")
        self._figure_due, self._figure_time = False, time.monotonic()

    def _log_figure(self, run: str, figure: Figure | None, name: str) -> None:
        if figure is not None:
            self.connection.client.log_figure(run, figure, name)

    def _drawn(self, what: str, draw: Callable[[], Figure]) -> Figure | None:
        # A figure is an ornament: a fault in drawing it must not keep the metrics behind it from MLflow.
        try:
            return draw()
        except Exception:
            logger.exception("the figure of the %s could not be drawn", what)
            return None

    def _log_network(self) -> None:
        from orchestrator.tracking.model import load_network, log_network

        ready = self.story.network
        # Without the network (data moved, store damaged) the rest is still worth mirroring.
        try:
            network, example = load_network(self.folder, self.story.started["config"], path=ready["path"], digest=ready["digest"])
        except Exception:
            logger.exception("the network %s could not be loaded, so it is not logged to MLflow", ready["path"])
            return
        report = self.story.reports.get(ready["round"])
        log_network(
            self.connection,
            self.state.parent,
            network,
            example,
            round=ready["round"],
            digest=ready["digest"],
            tags=self.story.tags,
            metrics=self._round_values(report) if report else [],
        )


def _plots() -> Any:
    # Imported when needed: matplotlib takes half a second.
    from orchestrator import plots

    return plots
