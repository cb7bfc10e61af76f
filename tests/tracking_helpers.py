"""Journals of small pretended runs, and what MLflow holds of a run, for the tests of tracking."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from orchestrator.journal import Journal
from orchestrator.report import ROUND_METRICS, RoundReport, search_metric
from orchestrator.tracking.connect import connect

EXPERIMENT = "test"
CONFIG: dict[str, Any] = {
    "run": {"seed": 3, "root": "runs"},
    "dataset": {"name": "digits", "train": None},
    "search": {"layers": [0, "logits"], "network": {}},
    "rounds": {"count": 2},
    "tracking": {"uri": "", "experiment": EXPERIMENT},
}
DATASET = {
    "name": "digits",
    "digest": "d" * 64,
    "classes": [str(number) for number in range(10)],
    "train": 100,
    "validation": 20,
    "test": 30,
    "input_shape": [1, 8, 8],
}
TAGS = {"dataset": "digits", "network": "convnet", "policy": "closed_loop", "strategy": "evolution", "objective": "regression", "seed": 3}
LAYERS = ("block0", "logits")


def begin(
    journal: Journal, *, resumed: bool = False, term: int = 1, config: dict[str, Any] = CONFIG, dataset: dict[str, Any] = DATASET
) -> None:
    """Write the record that starts or resumes the run."""
    fields = {"run_id": "run-1", "name": "first", "config": config, "dataset": dataset, "tags": TAGS}
    journal.append("run_started", term=term, resumed=resumed, **fields)


def search(journal: Journal, round: int) -> None:
    """Write a round's search curves."""
    for layer in LAYERS:
        journal.append_points(round, [(f"search/{layer}/cross_entropy", step, 2.0 / (1 + step + round)) for step in range(6)])


def learn(journal: Journal, round: int, epochs: int = 4) -> None:
    """Write a round's learning curves; also again after a crash, as a learner repeats what it told since its checkpoint."""
    for epoch in range(1, epochs + 1):
        points = [("learn/loss", epoch, 1.0 / epoch + round), ("learn/validation_accuracy", epoch, 0.1 * epoch)]
        journal.append_points(round, points)


def report(round: int) -> RoundReport:
    """Return a round's report."""
    metrics = {name: 0.1 * index + round for index, name in enumerate(ROUND_METRICS)}
    metrics |= {search_metric(layer, when): 1.0 / (1 + round) for layer in LAYERS for when in ("before", "after")}
    return RoundReport(round=round, policy="closed_loop", strategy="evolution", objective="regression", metrics=metrics)


def finish_round(journal: Journal, round: int) -> None:
    """Write the record that ends a round."""
    journal.append("round_finished", round=round, report=report(round).to_dict())


def whole_round(journal: Journal, round: int) -> None:
    """Write all records of a round."""
    journal.append("round_started", round=round, plan={"round": round})
    search(journal, round)
    learn(journal, round)
    finish_round(journal, round)


def end(journal: Journal, status: str = "FINISHED", error: str = "") -> None:
    """Write the record that ends the run."""
    journal.append("run_finished", status=status, error=error)


def whole_run(folder: Path, rounds: int = 2) -> None:
    """Write the journal of an undisturbed run."""
    folder.mkdir(parents=True, exist_ok=True)
    with Journal(folder) as journal:
        begin(journal)
        for round in range(rounds):
            whole_round(journal, round)
        end(journal)


@cache
def _migrated() -> Path:
    # Migrating a fresh database takes seconds; the tests that are not about that copy one.
    path = Path(mkdtemp(prefix="repsearch-test-")) / "mlflow.db"
    connect(f"sqlite:///{path}", "Default")
    return path


def database(root: Path) -> str:
    """Return the URI of a migrated database in `root`."""
    shutil.copyfile(_migrated(), root / "mlflow.db")
    return f"sqlite:///{root / 'mlflow.db'}"


def held(uri: str, experiment: str = EXPERIMENT) -> dict[str, Any]:
    """Return what MLflow holds of the experiment's only run: status and metric histories (not the system's), also of children by round."""
    client, experiment_id = _client(uri, experiment)
    runs = client.search_runs([experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1, [run.data.tags for run in parents]
    children = {int(run.data.tags["round"]): run for run in runs if "mlflow.parentRunId" in run.data.tags}
    assert len(children) == len(runs) - 1, "two children for a round"
    return {
        "id": parents[0].info.run_id,
        "status": parents[0].info.status,
        "metrics": _histories(client, parents[0]),
        "statuses": {round: children[round].info.status for round in sorted(children)},
        "children": {round: _histories(client, children[round]) for round in sorted(children)},
    }


def parent_of(uri: str, experiment: str = EXPERIMENT) -> Any:
    """Return the parent run."""
    client, _ = _client(uri, experiment)
    return client.get_run(held(uri, experiment)["id"])


def _client(uri: str, experiment: str) -> tuple[Any, str]:
    connection = connect(uri, experiment)
    return connection.client, connection.experiment_id


def _histories(client: Any, run: Any) -> dict[str, list[tuple[int, float]]]:
    keys = sorted(key for key in run.data.metrics if not key.startswith("system/"))
    return {key: sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)) for key in keys}


def results(state: dict[str, Any]) -> dict[str, Any]:
    """Return `held` without the MLflow run id, for comparing two runs."""
    return {key: value for key, value in state.items() if key != "id"}


@contextmanager
def hung_server() -> Iterator[str]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def closed_port() -> str:
    """URI of a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}"
