"""Rounds that cover windows of the training set: which examples, in which order, and how learning goes on from one to the next."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.preflight import check_windows
from orchestrator.report import measured
from orchestrator.tables import rounds_table
from repsearch.config import parse_config
from repsearch.errors import ConfigError
from repsearch.windows import Window, Windows, evaluated, windows_of
from store import layout
from store.verification import verify_run
from tests.test_orchestrator_rounds import EXAMPLES, Setting


def test_a_pass_takes_every_window_once_in_an_order_of_its_own() -> None:
    windows = Windows(103, 10, seed=3)
    passes = [[windows.of(round) for round in range(start, start + len(windows))] for start in (0, len(windows))]
    assert len(windows) == 11
    for order in passes:
        examples = [example for window in order for example in range(window.first, window.first + window.count)]
        assert sorted(examples) == list(range(103))
    assert passes[0] != passes[1]
    assert passes[0] != [Windows(103, 10, seed=4).of(round) for round in range(11)]
    assert Window(100, 3) in passes[0]


def test_steps_add_up_over_windows() -> None:
    windows = Windows(103, 20, seed=0)
    each = [max(1, windows.of(round).count // 8) * 2 for round in range(20)]
    assert [windows.steps(rounds, 8, 2) for rounds in range(20)] == [sum(each[:rounds]) for rounds in range(20)]


def test_without_windows_every_round_has_all_examples_and_is_measured() -> None:
    config = parse_config({})
    assert windows_of(config, 70).of(2) == Window(0, 70)
    assert all(evaluated(config, 70, round) for round in range(3))


def test_a_run_measures_once_per_pass_and_at_the_end() -> None:
    config = parse_config({"rounds": {"examples_per_round": 20, "count": 8}, "learn": {"batch_size": 20}})
    assert [round for round in range(8) if evaluated(config, 60, round)] == [2, 5, 7]
    config = parse_config({"rounds": {"examples_per_round": 20, "count": 8, "evaluate_every": 4}, "learn": {"batch_size": 20}})
    assert [round for round in range(8) if evaluated(config, 60, round)] == [3, 7]


@pytest.mark.parametrize(
    ("rounds", "learn", "message"),
    [
        ({"examples_per_round": 200}, {}, "examples_per_round: 200 is more than the 101"),
        ({"examples_per_round": 20}, {"batch_size": 30}, "batch_size: 30 is more than the 20"),
        ({"examples_per_round": 20}, {}, "the last is of a single one"),
        ({"examples_per_round": 30}, {"patience": 2}, r"patience: needs every round measured .*evaluate_every = 1"),
        ({}, {"start": "continue", "keep": "best"}, 'keep = "best": learning that goes on'),
    ],
)
def test_windows_that_do_not_fit_are_refused(rounds: dict[str, object], learn: dict[str, object], message: str) -> None:
    config = parse_config({"rounds": {"count": 2, **rounds}, "learn": {"batch_size": 10, **learn}})
    with pytest.raises(ConfigError, match=message):
        check_windows(config, 101)


def test_rounds_of_windows_search_and_learn_their_examples(tmp_path: Path) -> None:
    setting = Setting(tmp_path, count=4, examples_per_round=30)
    reports = setting.open()
    windows = windows_of(setting.run.config, EXAMPLES)
    searched = [(spec.round, spec.first, spec.count) for spec in setting.daemon.searches]
    for round in range(4):
        window = windows.of(round)
        mine = sorted((first, count) for number, first, count in searched if number == round)
        assert mine[0][0] == window.first
        assert sum(count for _, count in mine) == window.count
        learned = setting.learner.learns[round]
        assert (learned.first, learned.count, learned.unevaluated) == (window.first, window.count, round in (0, 2))
    assert [report.metrics["search/evaluations"] for report in reports] == [10 * windows.of(round).count for round in range(4)]
    assert setting.open() == reports


def test_reports_without_measurement_are_left_out_of_the_table(tmp_path: Path) -> None:
    setting = Setting(tmp_path, count=4, examples_per_round=30)
    setting.learner.measures = lambda spec: not spec.unevaluated
    reports = setting.open()
    assert [report.round for report in measured(reports)] == [1, 3]
    assert rounds_table(reports, []).row_count == 2


def test_old_rounds_are_removed_and_not_missed(tmp_path: Path) -> None:
    setting = Setting(tmp_path, count=4, keep={"rounds": 2})
    reports = setting.open()
    store = setting.store
    assert [len(store.committed(layout.search_folder(round))) for round in range(4)] == [0, 0, 3, 3]
    assert store.committed(layout.network_folder(0)) == ["initial"]
    assert [store.committed(layout.network_folder(round)) for round in (1, 2, 3)] == [[], ["learned-a1"], ["learned-a1"]]
    assert store.read_document(layout.PRUNED_DOCUMENT) == {"before": 2}
    assert setting.open() == reports
    setting.store.write_document(layout.RUN_DOCUMENT, setting.run.document(), create=True)
    assert verify_run(store) == []
    setting.forget(reports[2].learned["path"])
    assert [finding.path for finding in verify_run(store)] == [reports[2].learned["path"]]
