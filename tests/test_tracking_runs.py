"""What MLflow shows of a run, on sqlite: runs, statuses, metrics once each, tags, params, datasets, figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.journal import Journal
from orchestrator.report import COST_METRICS
from orchestrator.runs import Run
from orchestrator.tracking import MlflowTracker, sync
from orchestrator.tracking.connect import connect
from orchestrator.tracking.state import STATE_NAME
from repsearch.config import parse_config
from repsearch.errors import StoreError
from tests.tracking_helpers import (
    CONFIG,
    EXPERIMENT,
    begin,
    database,
    end,
    held,
    parent_of,
    report,
    search,
    whole_round,
    whole_run,
)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return database(tmp_path)


def track(folder: Path, uri: str) -> None:
    """Mirror the journal with a tracker."""
    assert MlflowTracker(folder, uri, EXPERIMENT).close(60)


def test_a_finished_run_is_all_there(tmp_path: Path, uri: str) -> None:
    whole_run(folder := tmp_path / "run")
    track(folder, uri)
    state = held(uri)
    assert (state["status"], state["statuses"]) == ("FINISHED", {0: "FINISHED", 1: "FINISHED"})
    assert state["metrics"] == {name: [(round, report(round).metrics[name]) for round in (0, 1)] for name in sorted(report(0).metrics)}
    child = state["children"][1]
    assert child["learn/loss"] == [(epoch, 1.0 / epoch + 1) for epoch in range(1, 5)]
    assert child["search/logits/cross_entropy"] == [(step, 2.0 / (2 + step)) for step in range(6)]
    assert child["test/accuracy"] == [(1, report(1).metrics["test/accuracy"])]


@pytest.mark.parametrize("objective", ["cross_entropy", "generalised_cross_entropy", "local_cross_entropy"])
def test_a_run_that_searches_nothing_is_tagged_with_no_strategy(tmp_path: Path, objective: str) -> None:
    config = parse_config({"learn": {"objective": objective}, "rounds": {"policy": "learn_only"}})
    facts: dict[str, Any] = {"folder": tmp_path, "run_id": "id", "name": "name", "term": 1, "dataset": {}, "digests": {}, "versions": {}}
    assert Run(**facts, config=config, created=0.0).tags()["strategy"] == "none"


def test_the_parent_has_tags_params_datasets_and_figures(tmp_path: Path, uri: str) -> None:
    whole_run(folder := tmp_path / "run")
    track(folder, uri)
    run = parent_of(uri)
    expected = {"dataset": "digits", "network": "convnet", "policy": "closed_loop", "strategy": "evolution", "objective": "regression"}
    assert expected.items() <= run.data.tags.items()
    assert {"seed": "3", "run_id": "run-1", "term": "1"}.items() <= run.data.tags.items()
    assert run.info.run_name == "first"
    assert run.data.params["search.layers"] == '[0, "logits"]'
    assert run.data.params["dataset.train"] == "null"
    assert {(item.dataset.name, item.tags[0].value) for item in run.inputs.dataset_inputs} == {
        ("digits-train", "train"),
        ("digits-validation", "validation"),
        ("digits-test", "test"),
    }
    client = connect(uri, EXPERIMENT).client
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"config.json", "rounds.png"}
    for child in client.search_runs([run.info.experiment_id], "tags.kind = 'round'"):
        assert [item.path for item in client.list_artifacts(child.info.run_id)] == ["round.png"]
        assert child.data.tags["strategy"] == "evolution"


def test_artifacts_lie_beside_the_database_wherever_the_process_runs(tmp_path: Path, uri: str) -> None:
    whole_run(folder := tmp_path / "run")
    track(folder, uri)
    run = parent_of(uri)
    assert run.info.artifact_uri == (tmp_path / "mlflow-artifacts" / run.info.run_id / "artifacts").as_uri()
    assert (tmp_path / "mlflow-artifacts" / run.info.run_id / "artifacts" / "rounds.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_run_that_stops_within_a_round_has_its_status_everywhere(tmp_path: Path, uri: str, status: str) -> None:
    with Journal(tmp_path) as journal:
        begin(journal)
        whole_round(journal, 0)
        journal.append("round_started", round=1, plan={})
        search(journal, 1)
        end(journal, status, "no searcher left")
    track(tmp_path, uri)
    state = held(uri)
    assert (state["status"], state["statuses"]) == (status, {0: "FINISHED", 1: status})
    assert parent_of(uri).data.tags["error"] == "no searcher left"


def test_sync_marks_a_run_that_nobody_continues_as_killed(tmp_path: Path, uri: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with Journal(folder) as journal:
        begin(journal)
        whole_round(journal, 0)
        journal.append("round_started", round=1, plan={})
    result = sync(folder)
    assert (result.uri, result.mlflow_run_id) == (uri, held(uri)["id"])
    assert (held(uri)["status"], held(uri)["statuses"]) == ("KILLED", {0: "FINISHED", 1: "KILLED"})


def test_an_analysis_after_the_end_becomes_artifacts_of_the_run_as_it_ended(tmp_path: Path, uri: str) -> None:
    folder = tmp_path / "run"
    whole_run(folder, rounds=1)
    sync(folder, uri=uri, experiment=EXPERIMENT)
    (folder / "analysis").mkdir()
    for text in ("first", "second"):
        (folder / "analysis/scores.csv").write_text(text)
        with Journal(folder) as journal:
            journal.append("analysis_ready", path="analysis")
        sync(folder, uri=uri, experiment=EXPERIMENT)
        assert parent_of(uri).info.status == "FINISHED"
    client, run = connect(uri, EXPERIMENT).client, parent_of(uri).info.run_id
    assert [item.path for item in client.list_artifacts(run, "analysis")] == ["analysis/scores.csv"]
    assert Path(client.download_artifacts(run, "analysis/scores.csv", str(tmp_path))).read_text() == "second"


def test_sync_is_refused_while_the_run_is_tracked(tmp_path: Path, uri: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with Journal(folder) as journal:
        begin(journal)
        tracker = MlflowTracker(folder, uri, EXPERIMENT)
        while not (folder / STATE_NAME).exists():
            tracker._closing.wait(0.01)
        with pytest.raises(StoreError, match="a process is writing this run"):
            sync(folder)
        assert tracker.close(60)


def test_sync_of_a_folder_without_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no journal"):
        sync(tmp_path)


def test_a_changed_config_on_resume_keeps_the_param_and_adds_a_tag(tmp_path: Path, uri: str) -> None:
    with Journal(tmp_path) as journal:
        begin(journal)
        end(journal, "KILLED")
        begin(journal, resumed=True, term=2, config={**CONFIG, "rounds": {"count": 9}})
    track(tmp_path, uri)
    run = parent_of(uri)
    assert run.data.params["rounds.count"] == "2"
    assert run.data.tags["resumed.rounds.count"] == "9"


def test_a_config_value_too_long_for_mlflow_is_cut_and_says_so(tmp_path: Path, uri: str) -> None:
    config = {**CONFIG, "dataset": {"name": "digits", "classes": ["x" * 100] * 100}}
    with Journal(tmp_path) as journal:
        begin(journal, config=config)
    track(tmp_path, uri)
    run = parent_of(uri)
    assert len(run.data.params["dataset.classes"]) == 6000
    assert run.data.params["dataset.classes"].endswith("(cut; whole in config.json)")
    path = tmp_path / "mlflow-artifacts" / run.info.run_id / "artifacts" / "config.json"
    assert json.loads(path.read_text()) == config


def test_system_metrics_are_sampled_and_go_on_after_a_resume(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    client = connect(uri, EXPERIMENT).client
    key = "system/cpu_utilization_percentage"
    steps: list[int] = []
    for term in (1, 2):
        with Journal(tmp_path) as journal:
            begin(journal, resumed=term > 1, term=term)
            tracker = MlflowTracker(tmp_path, uri, EXPERIMENT)
            before = len(steps)
            while len(steps) < before + 2:
                tracker._closing.wait(0.1)
                runs = client.search_runs([connect(uri, EXPERIMENT).experiment_id])
                steps = [metric.step for run in runs for metric in client.get_metric_history(run.info.run_id, key)]
            end(journal, "KILLED")
            assert tracker.close(60)
    assert len(set(steps)) == len(steps)
    assert held(uri)["status"] == "KILLED"


def test_rounds_of_windows_have_no_children_and_sampled_curves(tmp_path: Path, uri: str) -> None:
    config = {**CONFIG, "rounds": {"count": 1200, "examples_per_round": 25}}
    (tmp_path / "run").mkdir()
    with Journal(tmp_path / "run") as journal:
        begin(journal, config=config)
        for first in (0, 600):
            reports = [report(round) for round in range(first, first + 600)]
            cost = [replace(each, metrics={name: each.metrics[name] for name in COST_METRICS}) for each in reports]
            chosen = [whole if whole.round % 100 == 99 else bare for whole, bare in zip(reports, cost, strict=True)]
            journal.append_all([("round_finished", {"round": each.round, "report": each.to_dict()}) for each in chosen])
            waiting = {"searcher_waited_s": 1.5, "learner_waited_s": 0.5, "rounds_per_s": 20.0, "seconds_left": 3.0}
            journal.append("stream_progress", round=first + 599, rounds=first + 600, staleness={"0": 150, "1": 450}, **waiting)
        end(journal)
    track(tmp_path / "run", uri)
    state = held(uri)
    assert (state["status"], state["children"]) == ("FINISHED", {})
    assert [step for step, _ in state["metrics"]["test/accuracy"]] == list(range(99, 1200, 100))
    steps = [step for step, _ in state["metrics"]["seconds/round"]]
    assert steps == sorted({*range(0, 1200, 3), *range(99, 1200, 100)})
    assert state["metrics"]["stream/staleness_1"] == [(599, 0.75), (1199, 0.75)]
    assert state["metrics"]["stream/searcher_waited_s"] == [(599, 1.5), (1199, 1.5)]
