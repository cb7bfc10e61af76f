"""Resuming a run, or its tracker: the same MLflow runs go on, and no step is there twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.journal import Journal, read_journal
from orchestrator.tracking import MlflowTracker
from orchestrator.tracking.connect import connect
from orchestrator.tracking.mirror import Mirror
from orchestrator.tracking.state import STATE_NAME, load_state
from orchestrator.tracking.system import SystemMetrics
from repsearch.failpoints import POINTS, VARIABLE
from tests.tracking_helpers import (
    EXPERIMENT,
    begin,
    database,
    end,
    finish_round,
    held,
    learn,
    parent_of,
    results,
    search,
    whole_round,
    whole_run,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return database(tmp_path)


def track(folder: Path, uri: str) -> None:
    """Mirror the journal with a tracker."""
    assert MlflowTracker(folder, uri, EXPERIMENT).close(60)


def mirror_part(folder: Path, uri: str, records: list[dict[str, Any]]) -> None:
    """Apply the records, as a tracker does that is killed thereafter."""
    connection = connect(uri, EXPERIMENT)
    Mirror(folder, connection, load_state(folder, uri=uri, experiment=EXPERIMENT), live=False, system=SystemMetrics()).apply(records)


def test_a_resumed_run_goes_on_in_the_same_mlflow_runs_and_ends_as_if_undisturbed(tmp_path: Path, uri: str) -> None:
    with Journal(tmp_path) as journal:
        begin(journal)
        whole_round(journal, 0)
        journal.append("round_started", round=1, plan={})
        search(journal, 1)
        learn(journal, 1, epochs=2)
        end(journal, "FAILED", "learner died")
    track(tmp_path, uri)
    first = held(uri)
    with Journal(tmp_path) as journal:
        begin(journal, resumed=True, term=2)
        tracker = MlflowTracker(tmp_path, uri, EXPERIMENT)
        journal.append("round_started", round=1, plan={})
        search(journal, 1)
        learn(journal, 1)
        finish_round(journal, 1)
        end(journal)
        assert tracker.close(60)
    second = held(uri)
    assert second["id"] == first["id"]
    tags = parent_of(uri).data.tags
    assert tags["term"] == "2"
    assert "error" not in tags
    whole_run(tmp_path / "whole")
    other = database(tmp_path / "whole")
    track(tmp_path / "whole", other)
    assert results(second) == results(held(other))


def test_a_resumed_run_is_running_again(tmp_path: Path, uri: str) -> None:
    with Journal(tmp_path) as journal:
        begin(journal)
        journal.append("round_started", round=0, plan={})
        end(journal, "KILLED")
        track(tmp_path, uri)
        begin(journal, resumed=True, term=2)
        journal.append("round_started", round=0, plan={})
    track(tmp_path, uri)
    state = held(uri)
    assert (state["status"], state["statuses"]) == ("RUNNING", {0: "RUNNING"})


def test_a_resumed_round_is_running_again_from_its_first_new_point(tmp_path: Path, uri: str) -> None:
    with Journal(tmp_path) as journal:
        begin(journal)
        whole_round(journal, 0)
        journal.append("round_started", round=1, plan={})
        end(journal, "KILLED")
        track(tmp_path, uri)
        begin(journal, resumed=True, term=2)
        learn(journal, 1)
        journal.append_points(0, [("learn/late", 1, 0.0)])
    track(tmp_path, uri)
    assert held(uri)["statuses"] == {0: "FINISHED", 1: "RUNNING"}


@pytest.mark.fault(28)
@pytest.mark.parametrize("keep_state", [True, False])
def test_a_tracker_killed_anywhere_leaves_nothing_double(tmp_path: Path, keep_state: bool) -> None:
    whole_run(whole := tmp_path / "whole", rounds=1)
    track(whole, database(whole))
    expected = results(held(f"sqlite:///{whole / 'mlflow.db'}"))
    records = read_journal(whole)
    for length in (1, 9, len(records) - 1, len(records)):
        folder = tmp_path / f"cut-{length}"
        folder.mkdir()
        shutil.copy(whole / "journal.jsonl", folder)
        uri = database(folder)
        mirror_part(folder, uri, records[:length])
        if not keep_state:
            (folder / STATE_NAME).unlink()
        track(folder, uri)
        assert results(held(uri)) == expected, length


@pytest.mark.faults
@pytest.mark.fault(28)
@pytest.mark.parametrize("moment", [f"{point}@{count}" for point in POINTS if point.startswith("tracking.") for count in (1, 3)])
def test_a_tracker_killed_at_a_failpoint_leaves_nothing_double(tmp_path: Path, uri: str, moment: str) -> None:
    whole_run(whole := tmp_path / "whole", rounds=1)
    track(whole, undisturbed := database(whole))
    shutil.copy(whole / "journal.jsonl", tmp_path)
    program = f"from pathlib import Path; from tests.test_tracking_resume import track; track(Path({str(tmp_path)!r}), {uri!r})"
    died = subprocess.run([sys.executable, "-c", program], env={**os.environ, VARIABLE: moment}, cwd=ROOT, check=False, timeout=120)
    assert died.returncode == -signal.SIGKILL
    track(tmp_path, uri)
    assert results(held(uri)) == results(held(undisturbed))


def test_a_run_deleted_in_mlflow_is_logged_anew(tmp_path: Path, uri: str) -> None:
    whole_run(folder := tmp_path / "run")
    track(folder, uri)
    first = held(uri)
    connect(uri, EXPERIMENT).client.delete_run(first["id"])
    for child in connect(uri, EXPERIMENT).client.search_runs(["1"]):
        connect(uri, EXPERIMENT).client.delete_run(child.info.run_id)
    track(folder, uri)
    second = held(uri)
    assert second["id"] != first["id"]
    assert results(second) == results(first)


@pytest.mark.fault(27)
def test_a_damaged_state_file_is_no_more_than_a_lost_one(tmp_path: Path, uri: str) -> None:
    whole_run(folder := tmp_path / "run")
    track(folder, uri)
    first = held(uri)
    (folder / STATE_NAME).write_text('{"uri": "sq')
    track(folder, uri)
    assert held(uri) == first
