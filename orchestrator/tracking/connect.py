"""The way to MLflow: settings of the process, the client, and the creation of database and experiment.

Several processes may start at once on a fresh database: MLflow's migration is not made for that ("table already exists"), so it runs
under a file lock beside the database.
"""

from __future__ import annotations

import fcntl
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SETTINGS = {
    # A dead or hung server must cost seconds, not the four minutes of MLflow's defaults (7 retries, 120 s each).
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # The final network may be large and the server slow, but it must answer.
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "60",
    # Usage statistics are sent over the network by default.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

_WARNINGS = (
    # SQLAlchemy 2.1 about MLflow's store, at its import.
    "The .*noload.* loader strategy is deprecated",
    # MLflow about its own functions, at the import of mlflow.pyfunc.
    ".*Any type hint is inferred as AnyType",
)
"""Warnings about MLflow's own code, which a user can do nothing about."""

_SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Connection:
    """A client whose server answered, and the experiment to write to."""

    client: Any
    uri: str
    experiment_id: str


def tracking_uri(uri: str, *, root: Path) -> str:
    """Return `uri`, or the absolute one of the database `mlflow.db` in `root`, the folder of the runs."""
    return uri or f"{_SQLITE}{root.resolve() / 'mlflow.db'}"


def connect(uri: str, experiment: str) -> Connection:
    """Return a connection; creates the database and the experiment if they are not there.

    Raises what MLflow raises when the server does not answer, the database cannot be used or the experiment is deleted.
    """
    import_mlflow()
    from mlflow import MlflowClient

    path = sqlite_path(uri)
    if path is None:
        return Connection(client := MlflowClient(uri), uri, _experiment(client, experiment, None))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(path.name + ".lock")):
        client = MlflowClient(uri)
        return Connection(client, uri, _experiment(client, experiment, path.parent / "mlflow-artifacts"))


def import_mlflow() -> None:
    """Import MLflow with our settings; a setting that the user's environment has wins."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message)
    import mlflow  # noqa: F401

    # Both tell of every migration on stderr, in the middle of the progress bars.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lost contact is told once, by the tracker; the sampling thread would tell it again.
    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    # A retried request is one warning each.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def sqlite_path(uri: str) -> Path | None:
    """Return the database file of an sqlite URI, None for any other URI."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def _experiment(client: Any, name: str, artifacts: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            # Without a location, MLflow would put the artifacts of a local database into ./mlruns, wherever that is at the time.
            return str(client.create_experiment(name, artifact_location=artifacts.resolve().as_uri() if artifacts else None))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)
            if found is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    if found.lifecycle_stage != "active":
        raise MlflowException(f"experiment {name!r} is deleted; restore it, or set tracking.experiment to another name")
    return str(found.experiment_id)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
