"""The archive in the rounds of a run: which shards it comes from, what a resume accepts, and how long rounds stay for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import execution
from orchestrator.rounds import load_reports
from orchestrator.verify import verify
from repsearch.errors import ConfigError
from repsearch.windows import Windows, windows_of
from store import layout, open_store
from tests.serving_processes import daemon
from tests.test_orchestrator_rounds import EXAMPLES, Setting
from tests.test_streaming import STREAM, Daemons, learned

STRATEGY = (
    "search.strategy={name='evolution', population=6, parents=2, explorers=2, refiners=2, generations=[1], "
    "strength=[0.3], boost=[2.0], blur_passes=[0], noise_rows=512}"
)
ARCHIVE = (STRATEGY, "search.archive=2", "rounds.count=7")


def test_the_pass_before_had_the_window_once() -> None:
    windows = Windows(103, 10, seed=3)
    assert [windows.before(round) for round in range(11)] == [None] * 11
    before = [windows.before(round) for round in range(11, 22)]
    assert sorted(before) == list(range(11))
    assert [windows.of(number) for number in before] == [windows.of(round) for round in range(11, 22)]
    assert Windows(50, 50, seed=0).before(4) == 3


def sources(setting: Setting, round: int) -> dict[int, list[str]]:
    """Paths of the archive of each shard of a round."""
    return {spec.shard: [used.path for used in spec.archive] for spec in setting.daemon.searches if spec.round == round}


def test_each_shard_starts_from_those_of_the_round_before_that_cover_it(tmp_path: Path) -> None:
    setting = Setting(tmp_path, archive=1)
    setting.open()
    assert sources(setting, 0) == {0: [], 1: [], 2: []}
    assert sources(setting, 1) == {shard: [layout.shard_path(0, shard, 1)] for shard in range(3)}


def test_windows_start_from_their_last_pass_and_it_is_kept_until_then(tmp_path: Path) -> None:
    setting = Setting(tmp_path, archive=1, count=8, examples_per_round=10, keep={"rounds": 1})
    setting.open()
    windows = windows_of(setting.run.config, EXAMPLES)
    assert len(windows) == 5
    for round in range(8):
        before = windows.before(round)
        assert sources(setting, round) == {0: [] if before is None else [layout.shard_path(before, 0, 1)]}
    # After round 7 the next may need what is 9 rounds back.
    assert len(setting.store.committed(layout.search_folder(0))) == 1
    unused = Setting(tmp_path / "unused", count=8, examples_per_round=10, keep={"rounds": 1})
    (tmp_path / "unused").mkdir()
    unused.open()
    assert unused.store.committed(layout.search_folder(5)) == []


def test_a_schedule_may_begin_to_carry_elites(tmp_path: Path) -> None:
    schedule = [{"from_round": 1, "search": {"archive": 1}}]
    setting = Setting(tmp_path, count=3, schedule=schedule, keep={"rounds": 1})
    setting.open()
    # Round 0 has no elites, which its shards show; the searcher reads what there is.
    assert sources(setting, 1)[0] == [layout.shard_path(0, 0, 1)]
    assert sources(setting, 2)[0] == [layout.shard_path(1, 0, 1)]


def test_a_shard_searched_from_another_archive_does_not_count(tmp_path: Path) -> None:
    setting = Setting(tmp_path, archive=1)
    setting.open()
    setting.copy_without(layout.round_document(1), layout.report_document(1))
    assert [spec.shard for spec in setting.daemon.searches] == [0, 1, 2] * 2
    setting.open()
    assert setting.daemon.searches == []  # the archive is the same
    setting.copy_without(layout.round_document(1), layout.report_document(1))
    path = layout.shard_path(1, 1, 1)
    found = setting.store.manifest(path)
    arrays = {name: setting.store.read(path, name) for name in found.arrays}
    other = [{"path": layout.shard_path(0, 1, 1), "digest": "another"}]
    setting.forget(path)
    setting.store.write(path, arrays, attributes={**found.attributes, "archive": other})
    setting.open()
    assert [(spec.shard, spec.attempt) for spec in setting.daemon.searches] == [(1, 3)]


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemons]:
    root = tmp_path_factory.mktemp("archive") / "runs"
    root.mkdir()
    with daemon(root, module="searcher") as searcher, daemon(root, module="learner", service="learner") as learner:
        yield Daemons(root, searcher, learner)


@pytest.fixture(scope="module")
def closed(daemons: Daemons) -> Path:
    return daemons.run("closed", *ARCHIVE)


def test_elites_are_carried_and_change_what_is_learned_from_the_second_pass_on(daemons: Daemons, closed: Path) -> None:
    without = daemons.run("without", ARCHIVE[0], ARCHIVE[2])
    assert [one == other for one, other in zip(learned(closed), learned(without), strict=True)] == [True] * 5 + [False] * 2
    store = open_store(closed)
    windows = Windows(110, 25, seed=0)
    assert store.manifest(load_reports(store)[5].shards[0]["path"]).attributes["archive"] == [
        dict(load_reports(store)[windows.before(5) or 0].shards[0])
    ]
    assert verify(closed) == []


def test_other_shards_learn_the_same_bits(daemons: Daemons, closed: Path) -> None:
    assert learned(daemons.run("shards", *ARCHIVE, "searcher.shard_examples=7")) == learned(closed)


def test_streamed_windows_have_the_same_archive_though_old_rounds_go(daemons: Daemons, closed: Path) -> None:
    run = daemons.run("streamed", *ARCHIVE, STREAM % (0, 0), "rounds.keep.rounds=1")
    assert [report.metrics["test/accuracy"] for report in load_reports(open_store(run)) if report.evaluated] == [
        report.metrics["test/accuracy"] for report in load_reports(open_store(closed)) if report.evaluated
    ]
    last = [open_store(each).manifest(load_reports(open_store(each))[-1].learned["path"]) for each in (run, closed)]
    assert last[0].arrays["float32"].chunk_digests == last[1].arrays["float32"].chunk_digests
    assert verify(run) == []


def test_a_stream_on_older_networks_takes_the_newest_pass_that_is_learned(daemons: Daemons) -> None:
    # One window: the round before may be under way.
    run = daemons.run("stale", *ARCHIVE, STREAM % (1, 5), "rounds.examples_per_round=110", "rounds.keep.rounds=1")
    store, reports = open_store(run), load_reports(open_store(run))
    newest = store.manifest(reports[6].shards[0]["path"]).attributes
    source = 6 - 1 - int(reports[6].metrics["stream/staleness"])
    assert newest["archive"] == [dict(reports[source].shards[0])]


def test_a_strategy_without_elites_is_refused_before_a_run_starts(daemons: Daemons) -> None:
    with pytest.raises(ConfigError, match=r"search\.archive: 2, but the strategy evolution_strategy has no elites"):
        execution.prepare(daemons.config, ["search.archive=2"], "refused")
    assert not (daemons.root / "refused").exists()
