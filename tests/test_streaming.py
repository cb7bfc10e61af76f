"""Streamed rounds on real daemons: the bits of a closed loop, kills, removal, and what is told of waiting."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator import execution
from orchestrator.journal import read_journal
from orchestrator.progress import PlainDisplay
from orchestrator.rounds import load_reports
from orchestrator.searching import load_search
from orchestrator.segments import segment_starts
from orchestrator.status import status_of
from orchestrator.streaming.schedule import Schedule
from orchestrator.verify import verify
from repsearch.errors import ConfigError
from store import layout, open_store
from tests.orchestrator_runs import orchestrator
from tests.serving_processes import DaemonProcess, daemon, until

WINDOWS = """
[run]
root = "{root}"
[dataset]
name = "digits"
train = 110
validation = 20
test = 30
[network]
name = "convnet"
width = 8
blocks = 2
convolutions = 2
[search]
layers = [1]
start = "network"
[search.strategy]
name = "evolution_strategy"
pairs = 4
generations = [1]
sigma = [0.3]
step = [0.3]
blur_passes = [0]
[learn]
start = "continue"
epochs = 1
batch_size = 20
[rounds]
count = 11
examples_per_round = 25
[searcher]
addresses = ["{searcher}"]
[learner]
address = "{learner}"
[tracking]
enabled = false
"""


@dataclass(frozen=True)
class Daemons:
    """A searcher and a learner that serve run after run of one root."""

    root: Path
    searcher: DaemonProcess
    learner: DaemonProcess

    @property
    def config(self) -> Path:
        path = self.root / "windows.toml"
        path.write_text(WINDOWS.format(root=self.root, searcher=self.searcher.address, learner=self.learner.address))
        return path

    def run(self, name: str, *settings: str) -> Path:
        """Run to the end in this process; return the run's folder."""
        execution.start(execution.prepare(self.config, list(settings), name), QUIET)
        return self.root / name


QUIET = PlainDisplay(Console(quiet=True))
SOME_SEGMENTS = "stream/segments/0000000[1-8].json"
STREAM = "rounds.policy={name='streaming', max_staleness=%d, commit_seconds=%s}"


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemons]:
    root = tmp_path_factory.mktemp("streaming") / "runs"
    root.mkdir()
    with daemon(root, module="searcher") as searcher, daemon(root, module="learner", service="learner") as learner:
        yield Daemons(root, searcher, learner)


@pytest.fixture(scope="module")
def closed(daemons: Daemons) -> Path:
    """The closed loop with the same windows, a job per phase and round."""
    return daemons.run("closed")


def learned(run: Path) -> list[tuple[str, ...]]:
    """Digests of the parameters after every round."""
    store = open_store(run)
    manifests = [store.manifest(report.learned["path"]) for report in load_reports(store) if report.learned is not None]
    return [tuple(digest for name in sorted(m.arrays) for digest in m.arrays[name].chunk_digests) for m in manifests]


def test_windows_wait_for_the_learner_when_the_bound_is_reached() -> None:
    schedule = Schedule(next=0, end=5, learned=-1, max_staleness=1)
    assert [schedule.take(), schedule.take(), schedule.take()] == [0, 1, None]
    schedule.learned = 0
    assert schedule.staleness(2) == 1
    assert [schedule.take(), schedule.take()] == [2, None]
    schedule.give_back(2)
    schedule.give_back(1)
    assert [schedule.take(), schedule.take(), schedule.take()] == [1, 2, None]
    schedule.learned = 4
    assert [schedule.take(), schedule.take(), schedule.take()] == [3, 4, None]


def test_without_staleness_the_bits_are_those_of_the_closed_loop(daemons: Daemons, closed: Path) -> None:
    run = daemons.run("alternating", STREAM % (0, 0.2))
    assert len(learned(run)) == 11
    assert learned(run) == learned(closed)
    ours, theirs = load_reports(open_store(run)), load_reports(open_store(closed))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.metrics["stream/staleness"] == 0
        assert mine.evaluated == other.evaluated == (mine.round in (4, 9, 10))
        for name in ("test/accuracy", "validation/cross_entropy", "search/evaluations", "learn/examples"):
            assert mine.metrics.get(name) == other.metrics.get(name)
        assert mine.metrics["search/block1/cross_entropy_after"] == pytest.approx(other.metrics["search/block1/cross_entropy_after"])
    assert load_search(open_store(run), 3).curves["block1"] == pytest.approx(load_search(open_store(closed), 3).curves["block1"])
    assert verify(run) == verify(closed) == []


def test_windows_may_be_searched_with_their_own_statistics(daemons: Daemons, closed: Path) -> None:
    own = "search.statistics=round"
    jobs, stream = daemons.run("closed-own", own, "searcher.shard_examples=10"), daemons.run("alternating-own", own, STREAM % (0, 0.2))
    assert learned(jobs) == learned(stream)
    assert learned(jobs)[0] == learned(closed)[0], "the untrained network has statistics of its own"
    assert learned(jobs)[-1] != learned(closed)[-1]
    assert verify(jobs) == verify(stream) == []


def test_what_lags_behind_and_who_waits_is_told(daemons: Daemons) -> None:
    run = daemons.run("stale", STREAM % (2, 5))
    reports = load_reports(open_store(run))
    staleness = [report.metrics["stream/staleness"] for report in reports]
    assert max(staleness) in (1, 2)
    for report, lag in zip(reports, staleness, strict=True):
        source = report.round - 1 - int(lag)
        expected = reports[source].learned["path"] if source >= 0 else layout.initial_network_path()
        assert report.searched["path"] == expected
        assert open_store(run).manifest(report.shards[0]["path"]).attributes["network_digest"] == report.searched["digest"]
    found = status_of(run)
    assert {int(lag): rounds for lag, rounds in found["staleness"].items()} == {lag: staleness.count(lag) for lag in set(staleness)}
    assert found["learner_waited_seconds"] == pytest.approx(sum(report.metrics["seconds/learner_waited"] for report in reports))
    assert (found["state"], found["rounds_finished"]) == ("finished", 11)


def test_old_rounds_are_removed_while_the_run_goes_on(daemons: Daemons) -> None:
    run = daemons.run("pruned", STREAM % (0, 0), "rounds.keep.rounds=3")
    store = open_store(run)
    there = {folder: len(store.committed(folder)) for folder in layout.STREAM_FOLDERS}
    assert there == {"stream/targets": 3, "stream/networks": 3, "stream/states": 1}
    assert len(load_reports(store)) == 11
    assert verify(run) == []
    store.delete(load_reports(store)[9].learned["path"])
    assert [finding["path"] for finding in verify(run)] == [load_reports(store)[9].learned["path"]]


def test_a_missing_segment_is_found(daemons: Daemons) -> None:
    run = daemons.run("gap", STREAM % (0, 0), "rounds.count=4")
    second = segment_starts(open_store(run))[1]
    (run / layout.segment_document(second)).unlink()
    assert [f"the segment before ends at {second}" in finding["problem"] for finding in verify(run)] == [True]


@pytest.mark.fault(4)
def test_a_killed_orchestrator_goes_on_with_the_same_bits(daemons: Daemons, closed: Path) -> None:
    """The daemons live on with a job of the earlier term, which the resumed run fences."""
    run = daemons.root / "killed"
    arguments = ["run", str(daemons.config), "--name", "killed", "--set", STREAM % (0, 0), "--set", "rounds.keep.rounds=2"]
    with orchestrator(*arguments, folder=daemons.root) as process:
        process.await_file(run, SOME_SEGMENTS)
        process.send(signal.SIGKILL)
        process.wait()
    resumed = execution.resume(run, QUIET)
    assert [report.round for report in resumed.reports] == list(range(11))
    store = open_store(run)
    assert [tuple(store.manifest(resumed.reports[10].learned["path"]).arrays["float32"].chunk_digests)] == [
        tuple(open_store(closed).manifest(load_reports(open_store(closed))[10].learned["path"]).arrays["float32"].chunk_digests)
    ]
    assert verify(run) == []
    assert len(store.committed("stream/networks")) == 2
    finished = [record["round"] for record in read_journal(run) if record["kind"] == "round_finished"]
    assert finished == list(range(11))


@pytest.mark.fault(1, 5)
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_lost_searcher_gives_its_window_to_another(daemons: Daemons, closed: Path, number: signal.Signals) -> None:
    with daemon(daemons.root, "--grace", "0", module="searcher") as other:
        addresses = f'searcher.addresses=["{other.address}", "{daemons.searcher.address}"]'
        arguments = ["run", str(daemons.config), "--name", number.name, "--set", STREAM % (0, 0), "--set", addresses]
        with orchestrator(*arguments, folder=daemons.root) as process:
            process.await_file(daemons.root / number.name, SOME_SEGMENTS)
            other.signal(number)
            assert process.wait() == 0, process.text()
    assert learned(daemons.root / number.name) == learned(closed)


@pytest.mark.fault(3, 11)
@pytest.mark.slow
def test_a_learner_whose_process_dies_goes_on_from_the_last_commit(daemons: Daemons, closed: Path) -> None:
    arguments = ["run", str(daemons.config), "--name", "crashed", "--set", STREAM % (0, 0)]
    with orchestrator(*arguments, folder=daemons.root) as process:
        process.await_file(daemons.root / "crashed", SOME_SEGMENTS)
        os.kill(compute_process(daemons.learner.process.pid), signal.SIGKILL)
        assert process.wait() == 0, process.text()
        assert "going on from round" in process.text()
    assert learned(daemons.root / "crashed") == learned(closed)
    assert verify(daemons.root / "crashed") == []


def compute_process(parent: int) -> int:
    """Process id of the compute process of daemon `parent`."""
    found: list[int] = []

    def there() -> bool:
        found[:] = [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
        for task in Path(f"/proc/{parent}/task").iterdir():
            found.extend(int(child) for child in (task / "children").read_text().split())
        return bool(found)

    until(there)
    return found[-1]


def test_streams_need_learning_that_goes_on(daemons: Daemons) -> None:
    with pytest.raises(ConfigError, match=r'learn\.start: "warm"'):
        execution.prepare(daemons.config, [STREAM % (0, 0), "learn.start=warm"], "refused")


def test_a_budget_ends_the_stream_after_a_round_that_is_measured(daemons: Daemons, closed: Path) -> None:
    run = daemons.run("budget", STREAM % (1, 5), "rounds.max_evaluations=12")
    reports = load_reports(open_store(run))
    assert [bool(report.ended) for report in reports] == [False] * 9 + [True]
    assert "max_evaluations" in reports[9].ended
    assert len(open_store(run).committed("stream/networks")) == 10
    assert verify(run) == []
    assert execution.resume(run, QUIET).reports == reports


def test_a_run_that_goes_on_can_be_verified(daemons: Daemons) -> None:
    run = daemons.root / "going-on"
    arguments = ["run", str(daemons.config), "--name", "going-on", "--set", STREAM % (1, 0), "--set", "rounds.keep.rounds=1"]
    with orchestrator(*arguments, "--set", "rounds.count=44", folder=daemons.root) as process:
        process.await_file(run, SOME_SEGMENTS)
        while process.process.poll() is None:
            assert verify(run) == []
        assert process.wait() == 0, process.text()
