"""The background thread that mirrors the journal, and `sync`, which does the same on demand.

The thread reads the journal itself, so nothing is queued and nothing can be lost: `put` sets an event. When MLflow does not answer, the
thread says so once and tries again with growing pauses, and once more at `close`, which waits for a bounded time. The thread is a
daemon: a request that hangs does not keep the process from ending.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from orchestrator.journal import JournalReader, Record, last_of_run, read_journal
from orchestrator.tracking.connect import connect, tracking_uri
from orchestrator.tracking.mirror import Mirror
from orchestrator.tracking.runs import Runs
from orchestrator.tracking.state import LOCK_NAME, load_state, try_lock
from orchestrator.tracking.system import SystemMetrics
from repsearch.errors import DaemonError, StoreError

logger = logging.getLogger("orchestrator.tracking")

PAUSES_S = (2.0, 5.0, 15.0, 30.0, 60.0)
"""Pauses between attempts to reach MLflow; the last one repeats."""
LOCK_POLL_S = 0.5


class Tracker(Protocol):
    """Where the orchestrator tells of new journal records."""

    def put(self, record: Record) -> None:
        """Tell of a record that is in the journal; returns at once."""
        ...

    def close(self, timeout_s: float = 60.0) -> bool:
        """Finish within `timeout_s`; return whether everything in the journal was taken over."""
        ...


class NoTracker:
    """Tracks nothing (`tracking.enabled = false`)."""

    def put(self, record: Record) -> None:
        """Ignore the record."""

    def close(self, timeout_s: float = 60.0) -> bool:
        """Return true: there is nothing to take over."""
        return True


class MlflowTracker:
    """Mirrors the journal in `run_folder` to `experiment` at MLflow `uri` (see `tracking_uri`) until closed.

    tell: called once, from the thread, with a message for the user when MLflow cannot be reached; by default it is logged as a warning.
    """

    def __init__(self, run_folder: Path, uri: str, experiment: str, *, tell: Callable[[str], None] | None = None) -> None:
        self.folder = run_folder
        self.uri = uri
        self.experiment = experiment
        self.problem = ""
        """What keeps the journal from MLflow at the moment; empty while all is well."""
        self._tell = tell or logger.warning
        self._told = False
        self._synced = False
        self._system = SystemMetrics()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow-tracker", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Tell of a record that is in the journal; returns at once."""
        self._wake.set()

    def close(self, timeout_s: float = 60.0) -> bool:
        """Mirror what is left, within `timeout_s`; return whether everything in the journal is in MLflow."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_s)
        self._abandoned.set()
        if self._thread.is_alive() and not self.problem:
            self.problem = f"no end of the transfer within {timeout_s:g} s"
        if not self._synced:
            self._complain(self.problem)
        return self._synced

    def _run(self) -> None:
        lock = self._acquire()
        if lock is None:
            return
        with lock:
            attempt = 0
            while not self._abandoned.is_set():
                closing = self._closing.is_set()
                try:
                    self._mirror_until_closed()
                    return
                # Whatever the reason (network, database, MLflow itself): the run goes on, and the journal is there to be replayed.
                except Exception as error:
                    self._failed(error)
                if closing:
                    return
                self._pause(PAUSES_S[min(attempt, len(PAUSES_S) - 1)])
                attempt += 1

    def _acquire(self) -> IO[str] | None:
        while not self._abandoned.is_set():
            try:
                lock = try_lock(self.folder / LOCK_NAME)
            except OSError as error:
                self._failed(error)
                return None
            if lock is not None:
                return lock
            self.problem = "another process writes this run to MLflow"
            if self._closing.is_set():
                return None
            self._closing.wait(LOCK_POLL_S)
        return None

    def _mirror_until_closed(self) -> None:
        mirror = _open_mirror(self.folder, self.uri, self.experiment, live=True, system=self._system)
        reader = JournalReader(self.folder)
        while not self._abandoned.is_set():
            # Looked at before reading: whatever was written before `close` is read below.
            closing = self._closing.is_set()
            self._wake.clear()
            mirror.apply(reader.read(), stop=self._abandoned.is_set)
            self.problem = ""
            if closing:
                self._system.stop()
                self._synced = not self._abandoned.is_set()
                return
            self._wake.wait()

    def _pause(self, seconds: float) -> None:
        # Records wake the thread only while MLflow answers; closing ends the pause.
        self._closing.wait(seconds)

    def _failed(self, error: Exception) -> None:
        self.problem = _text(error)
        logger.debug("MLflow at %s", self.uri, exc_info=error)
        self._complain(self.problem)

    def _complain(self, problem: str) -> None:
        if not self._told:
            self._told = True
            self._tell(
                f"MLflow at {self.uri} is behind the run ({problem}); the run goes on, and "
                f"`orchestrator sync {self.folder}` brings MLflow up to date later"
            )


@dataclass(frozen=True)
class SyncResult:
    """uri: MLflow's. experiment_id, mlflow_run_id: where the run is. records: number of records in the journal, all of them applied now."""

    uri: str
    experiment_id: str
    mlflow_run_id: str
    records: int


def sync(run_folder: Path, *, uri: str = "", experiment: str = "") -> SyncResult:
    """Bring MLflow up to date with the journal in `run_folder`; by default where the run's configuration says.

    A run that no process tracks and whose journal has no end was killed, and is shown so.
    Raises `StoreError` if there is no journal or a process is tracking the run, `DaemonError` if MLflow cannot be used.
    """
    records = read_journal(run_folder)
    if not records:
        raise StoreError(f"{run_folder}: no journal; name the folder of a run")
    config = next(record for record in records if record["kind"] == "run_started")["config"]
    uri = tracking_uri(uri or config["tracking"]["uri"], root=run_folder.resolve().parent)
    lock = try_lock(run_folder / LOCK_NAME)
    if lock is None:
        raise StoreError(f"{run_folder}: a process is writing this run to MLflow; wait for its end, or stop it")
    with lock:
        try:
            mirror = _open_mirror(run_folder, uri, experiment or config["tracking"]["experiment"], live=False, system=SystemMetrics())
            mirror.apply(records)
            last = last_of_run(records)
            if last is None or last["kind"] != "run_finished":
                _end_killed(mirror)
        except Exception as error:
            raise DaemonError(f"MLflow at {uri}: {_text(error)}; start it, or name another with --uri, then repeat the command") from error
    return SyncResult(uri, mirror.connection.experiment_id, mirror.state.parent, len(records))


def _open_mirror(folder: Path, uri: str, experiment: str, *, live: bool, system: SystemMetrics) -> Mirror:
    connection = connect(uri, experiment)
    state = load_state(folder, uri=uri, experiment=experiment)
    Runs(connection, state).check_parent()
    return Mirror(folder, connection, state, live=live, system=system)


def _end_killed(mirror: Mirror) -> None:
    mirror.runs.end_open_children("KILLED", now := time.time())
    mirror.runs.end(mirror.state.parent, "KILLED", now)


def _text(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
