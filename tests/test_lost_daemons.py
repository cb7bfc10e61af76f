"""Searchers that are killed, stopped, started anew or gone altogether, as real processes: a run waits for nobody in silence."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.journal import read_journal
from orchestrator.status import status_of
from orchestrator.verify import verify
from repsearch.errors import JobError
from tests.background_runs import daemons, resumed, run_on, start_searcher
from tests.orchestrator_runs import learned
from tests.serving_processes import DaemonProcess, until

Fleet = tuple[Path, list[DaemonProcess], DaemonProcess]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    root = tmp_path_factory.mktemp("lost") / "runs"
    with daemons(root, 2) as (searchers, learner):
        yield root, searchers, learner


@pytest.fixture(scope="module")
def undisturbed(fleet: Fleet) -> list[tuple[str, ...]]:
    root, searchers, learner = fleet
    with run_on(root, searchers, learner, "undisturbed") as run:
        assert run.end() is None
    return learned(root / "undisturbed")


def waits_of(folder: Path) -> list[tuple[str, bool]]:
    """What is waited for, and whether that has a bound."""
    return [(wait["what"], wait["until"] is not None) for wait in status_of(folder)["waits"]]


def check_whole(folder: Path, undisturbed: list[tuple[str, ...]]) -> None:
    """What a lost searcher was at was cancelled, or has another number: it changes nothing."""
    assert learned(folder) == undisturbed
    assert verify(folder) == []
    assert read_journal(folder)[-1]["status"] == "FINISHED"


def compute_of(process: DaemonProcess) -> int:
    """Process id of the compute process of a daemon."""
    (pid,) = (
        int(child) for task in Path(f"/proc/{process.process.pid}/task").iterdir() for child in (task / "children").read_text().split()
    )
    return pid


@pytest.mark.slow
def test_the_slowest_shard_gets_a_second_attempt(fleet: Fleet, undisturbed: list[tuple[str, ...]]) -> None:
    """The compute process of one searcher is stopped: its daemon lives, and its shard falls behind."""
    root, (one, two), learner = fleet
    with run_on(root, [one, two], learner, "hedged", "searcher.shard_examples=16", "searcher.stall_seconds=1000") as run:
        run.until_file("rounds/00000/search/*/MANIFEST.json")
        stopped = compute_of(one)
        os.kill(stopped, signal.SIGSTOP)
        try:
            run.until_incident("hedged", f"slow on {one.address}; {two.address} tries it too")
            run.until_file("rounds/00000/round.json")
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert run.end() is None
    check_whole(run.folder, undisturbed)
    # The other attempt was cancelled: nothing runs on.
    with one.client() as client:
        until(lambda: not client.connect().unfinished_jobs, 60)


@pytest.mark.slow
@pytest.mark.fault(20)
@pytest.mark.parametrize(("service", "moment"), [("searcher", "rounds/00000/search/*/MANIFEST.json"), ("learner", "checkpoints/00000/*")])
def test_a_job_without_progress_is_reported_cancelled_and_done_again(
    fleet: Fleet, undisturbed: list[tuple[str, ...]], service: str, moment: str
) -> None:
    root, (one, _), learner = fleet
    settings = ("searcher.shard_examples=16", f"{service}.stall_seconds=60")
    with run_on(root, [one], learner, f"stuck-{service}", *settings) as run:
        run.until_file(moment)
        process = one if service == "searcher" else learner
        os.kill(compute_of(process), signal.SIGSTOP)
        run.until_incident("still", f"on {process.address}: alive, but no progress for")
        run.until(lambda: any("no progress" in wait["note"] for wait in status_of(run.folder)["waits"]))
        run.until_incident("stalled", f"on {process.address}: no progress for")
        assert run.end() is None
    check_whole(run.folder, undisturbed)


@pytest.mark.slow
@pytest.mark.fault(6)
@pytest.mark.fault(9)
@pytest.mark.fault(12)
def test_searchers_stopped_killed_and_started_anew_are_used_again(fleet: Fleet, undisturbed: list[tuple[str, ...]]) -> None:
    root, (one, two), learner = fleet
    settings = ("searcher.shard_examples=16", "searcher.hedge=false", "searcher.wait_seconds=300")
    with run_on(root, [one, two], learner, "night", *settings) as run:
        run.until_file("rounds/00000/search/*/MANIFEST.json")
        one.signal(signal.SIGSTOP)
        stopped = time.monotonic()
        run.until_incident("daemon_lost", one.address)
        assert time.monotonic() - stopped < 20
        two.signal(signal.SIGKILL)
        two.wait()
        # Nobody is left: the run says so, and waits.
        run.until_incident("waiting", "no searcher daemon is left for shard")
        run.until(lambda: (f"searcher at {two.address} to come back", True) in waits_of(run.folder))
        anew = start_searcher(two.store, "--listen", two.address)
        assert anew.ready["incarnation"] != two.ready["incarnation"]
        try:
            run.until_incident("daemon_back", two.address)
        finally:
            anew.close()
        run.until_incident("waiting", "no searcher daemon is left", count=2)
        one.signal(signal.SIGCONT)
        run.until_incident("daemon_back", one.address)
        assert run.end() is None
    check_whole(run.folder, undisturbed)


@pytest.mark.slow
@pytest.mark.fault(12)
def test_all_searchers_gone_for_too_long_ends_the_run_to_be_resumed(fleet: Fleet, undisturbed: list[tuple[str, ...]]) -> None:
    root, searchers, learner = fleet
    one = searchers[0]
    settings = ("searcher.shard_examples=16", "searcher.wait_seconds=2", "searcher.hedge=false")
    with run_on(root, [one], learner, "gone", *settings) as run:
        run.until_file("rounds/00000/search/*/MANIFEST.json")
        one.signal(signal.SIGSTOP)
        run.until_incident("waiting", "waiting 2 s for one to return")
        error = run.end()
    one.signal(signal.SIGCONT)
    assert isinstance(error, JobError) and error.exit_code == 6
    assert "no searcher daemon is left for shard" in str(error) and f"orchestrator resume {run.folder}" in str(error)
    with resumed(run.folder) as again:
        assert again.end() is None
    check_whole(run.folder, undisturbed)
