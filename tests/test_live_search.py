"""A search that runs shows what it found: merged over shards, in the journal, in `status`, and in MLflow before the phase ends."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from orchestrator import live
from orchestrator.journal import Journal, Point, read_journal
from orchestrator.live import LiveSearch, LiveState, duration, fields_of, text_of
from orchestrator.plots import round_figure
from orchestrator.status import status_of
from orchestrator.tracking.connect import Connection, connect
from orchestrator.tracking.tracker import sync
from repsearch.rpc.v1 import jobs_pb2
from tests.orchestrator_runs import DEADLINE_S, Orchestrator, orchestrator, write_config
from tests.tracking_helpers import EXPERIMENT, begin, search

T = TypeVar("T")


def progress(done: int, curve: list[float], solved: float = 0.5, *, total: int = 100, ahead: float = 0.0) -> jobs_pb2.Progress:
    layers = [jobs_pb2.LayerState(name="block0", cross_entropy=curve, solved=solved)] if done else []
    found = jobs_pb2.SearchState(layers=layers, evaluations=10 * done, ahead=ahead, layer="block0", generation=3, generations=7)
    return jobs_pb2.Progress(counter=1, done=done, total=total, search=found)


class Heard:
    """A search of 400 images, of which 100 are there, and its news."""

    def __init__(self) -> None:
        self.states, self.points = list[LiveState](), list[Point]()
        there = [{"count": 100, "curves": {"block0": [4.0, 2.0]}, "solved": {"block0": 1.0}}]
        self.live = LiveSearch(400, there, record=self.states.append, points=self.points.extend)


def test_shards_are_merged_by_their_images() -> None:
    heard = Heard()
    heard.live.heard(1, progress(50, [2.0, 1.0], 0.5))
    heard.live.heard(2, progress(0, [], ahead=10))
    state = heard.live.state()
    assert state.images == 150
    assert state.cross_entropy == {"block0": pytest.approx((100 * 2.0 + 50 * 1.0) / 150)}
    assert state.solved == {"block0": pytest.approx((100 * 1.0 + 50 * 0.5) / 150)}
    assert (state.layer, state.generation, state.generations) == ("block0", 3, 7)
    heard.live.heard(1, None)
    assert heard.live.state().images == 100


def test_rate_and_time_left_count_what_this_opening_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(live.time, "monotonic", lambda: now)
    heard = Heard()
    assert heard.live.state().seconds_left is None
    now = 1010.0
    heard.live.heard(1, progress(40, [1.0, 0.5], ahead=10))
    # 50 images in 10 s; 400 - 140 - 10 are left.
    assert heard.live.state().seconds_left == pytest.approx(50)
    assert heard.live.state().evaluations_per_s == pytest.approx(40)
    text = text_of(fields_of(heard.live.state()))
    assert text == "block0 generation 3/7, block0 cross-entropy 1.571 (86% solved), 40 evaluations/s, 50 s left"


def test_records_come_at_a_bounded_rate_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(live.time, "monotonic", lambda: now)
    heard = Heard()
    for step in range(1000):
        now = 0.02 * step
        heard.live.heard(1, progress(step // 10, [1.0, 0.5]))
    assert len(heard.states) <= 20 / live.RECORD_S + 2
    assert heard.states[1].images > 100
    heard.live.heard(1, progress(100, [1.0, 0.5]))
    heard.live.end()
    assert heard.states[-1].images == 200


def test_curves_of_a_part_are_told_once_by_generation() -> None:
    heard = Heard()  # a quarter is there
    for done in (1, 50, 99, 100, 100):
        heard.live.heard(1, progress(done, [2.0, 1.0]))
    heard.live.heard(2, progress(100, [2.0, 1.0]))
    keys = [key for key, _, _ in heard.points]
    assert keys == ["search/after_50_percent/block0/cross_entropy"] * 2 + ["search/after_75_percent/block0/cross_entropy"] * 2
    assert [(step, value) for _, step, value in heard.points[:2]] == [(0, 3.0), (1, 1.5)]


def test_the_figure_of_a_round_shows_the_curve_of_all_images_alone() -> None:
    curves = {"search/block0/cross_entropy": {0: 2.0, 1: 1.0}, "search/after_10_percent/block0/cross_entropy": {0: 3.0, 1: 2.0}}
    axes = round_figure(0, curves).axes
    assert [line.get_label() for line in axes[0].get_lines()] == ["block0"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (59, "59 s"), (61, "1 min 01 s"), (3599.5, "1 h 00 min"), (7500, "2 h 05 min")]
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def metrics_of(connection: Connection) -> dict[str, list[tuple[int, float]]]:
    """Histories of the metrics of the one round."""
    for child in connection.client.search_runs([connection.experiment_id], "tags.kind = 'round'"):
        keys = [key for key in child.data.metrics if key.startswith("search/")]
        histories = {key: connection.client.get_metric_history(child.info.run_id, key) for key in keys}
        return {key: [(metric.step, metric.value) for metric in history] for key, history in histories.items()}
    return {}


def awaited(process: Orchestrator, look: Callable[[], T | None]) -> T:
    """Return what `look` gives once it gives something."""
    deadline = time.monotonic() + DEADLINE_S
    while (found := look()) is None:
        assert process.process.poll() is None, process.text()
        assert time.monotonic() < deadline, process.text()
        time.sleep(0.02)
    return found


def test_figures_are_in_mlflow_and_in_the_status_while_the_search_goes_on(tmp_path: Path) -> None:
    run, uri = tmp_path / "runs/tiny-1", f"sqlite:///{tmp_path / 'mlflow.db'}"
    settings = ["tracking.enabled=true", f"tracking.uri={uri}", f"tracking.experiment={EXPERIMENT}", "rounds.count=1", "learn.epochs=1"]
    settings += ["search.strategy.generations=[30, 30, 2]"]
    arguments = ["run", str(write_config(tmp_path)), *(word for setting in settings for word in ("--set", setting))]
    with orchestrator(*arguments, folder=tmp_path) as process:
        awaited(process, lambda: has_figures(run) or None)
        (compute,) = psutil.Process(process.pid_of("searcher")).children()
        # Its daemon tells that the job goes on, however long MLflow takes to begin.
        compute.suspend()
        try:
            connection = connect(uri, EXPERIMENT)
            found = awaited(process, lambda: early if early_figures(early := metrics_of(connection)) else None)
            status = status_of(run)
            assert not (run / "rounds/00000/round.json").exists()
        finally:
            compute.resume()
        final = awaited(process, lambda: late if "search/block0/cross_entropy" in (late := metrics_of(connection)) else None)
    # What the daemon told before its process was stopped may reach the status, read later, and not MLflow.
    assert 0 < found["search/live/block0/cross_entropy"][0][0] <= status["images_done"] < 200
    assert {"search/live/logits/solved", "search/live/evaluations_per_s", "search/live/seconds_left"} <= found.keys()
    (early_curve,) = early_curves(found)
    assert [step for step, _ in early_curve] == list(range(31))
    assert early_curve[-1][1] < early_curve[0][1]
    assert status["phase"] == "search"
    text = r"\d+ of 200 images, \w+ generation \d+/\d+, block0 cross-entropy .* solved.*evaluations/s, \d+.* left"
    assert re.match(text, status["search"])
    record = json.loads((run / "rounds/00000/round.json").read_text())["document"]
    assert dict(final["search/block0/cross_entropy"]) == dict(enumerate(record["curves"]["block0"]))
    for history in final.values():
        assert len({step for step, _ in history}) == len(history)
    assert final["search/live/logits/solved"][-1] == (200, pytest.approx(record["solved"]["logits"]))
    assert status_of(run)["search"] == ""


def early_figures(metrics: dict[str, list[tuple[int, float]]]) -> bool:
    """Whether MLflow has all that was there when the process was stopped: it is sent in several calls."""
    return "search/live/block0/solved" in metrics and any(len(curve) == 31 for curve in early_curves(metrics))


def early_curves(metrics: dict[str, list[tuple[int, float]]]) -> list[list[tuple[int, float]]]:
    """Curves of block 0 over the images searched so far."""
    return [curve for key, curve in metrics.items() if re.fullmatch(r"search/after_\d+_percent/block0/cross_entropy", key)]


def has_figures(folder: Path) -> bool:
    """Whether the journal has curves of the search."""
    return any(record["kind"] == "point" and "percent" in record["key"] for record in read_journal(folder))


def test_what_a_resumed_run_searches_again_is_in_mlflow_once(tmp_path: Path) -> None:
    state = LiveState(
        images=20,
        total=100,
        layer="block0",
        generation=1,
        generations=5,
        cross_entropy={"block0": 1.5},
        solved={"block0": 0.5},
        evaluations_per_s=100.0,
        seconds_left=None,
    )
    folder = tmp_path / "run"
    folder.mkdir()
    for term, images in ((1, (20, 40)), (2, (40, 20, 60))):
        with Journal(folder) as journal:
            begin(journal, term=term, resumed=term > 1)
            for done in images:
                journal.append("search_progress", round=0, **fields_of(replace(state, images=done, solved={"block0": term / 10})))
                journal.append_points(0, [("search/after_10_percent/block0/cross_entropy", 0, float(term))])
        sync(folder)
    with Journal(folder) as journal:
        search(journal, 0)
    uri = sync(folder).uri
    found = metrics_of(connect(uri, EXPERIMENT))
    assert found["search/live/block0/solved"] == [(20, 0.1), (40, 0.1), (60, 0.2)]
    assert found["search/after_10_percent/block0/cross_entropy"] == [(0, 1.0)]
    assert "search/live/seconds_left" not in found
    assert len(found["search/block0/cross_entropy"]) == 6
