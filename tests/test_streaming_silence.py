"""Streamed rounds whose daemons are stopped or that people steer: said, bounded, and to the same bits."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import execution
from orchestrator.rounds import load_reports
from orchestrator.segments import segment_starts
from orchestrator.status import status_of
from orchestrator.steering import ask
from orchestrator.verify import verify
from repsearch.errors import StoppedError
from store import open_store
from tests.background_runs import BackgroundRun, resumed, start_searcher
from tests.background_runs import daemons as started
from tests.serving_processes import DaemonProcess
from tests.test_streaming import SOME_SEGMENTS, STREAM, WINDOWS, learned

ROUNDS = "rounds.count=33"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, DaemonProcess, DaemonProcess]]:
    root = tmp_path_factory.mktemp("silence") / "runs"
    with started(root, 1) as ((searcher,), learner):
        (root / "windows.toml").write_text(WINDOWS.format(root=root, searcher=searcher.address, learner=learner.address))
        yield root, searcher, learner


def stream(root: Path, name: str, *settings: str) -> BackgroundRun:
    prepared = execution.prepare(root / "windows.toml", [STREAM % (0, 0), ROUNDS, *settings], name)
    return BackgroundRun(root / name, lambda display: execution.start(prepared, display))


@pytest.fixture(scope="module")
def undisturbed(fleet: tuple[Path, DaemonProcess, DaemonProcess]) -> list[tuple[str, ...]]:
    with stream(fleet[0], "undisturbed") as run:
        assert run.end() is None
    return learned(run.folder)


def rounds_kept(folder: Path) -> int:
    return len(load_reports(open_store(folder)))


@pytest.mark.slow
def test_a_stream_pauses_stops_and_goes_on_without_losing_a_round(
    fleet: tuple[Path, DaemonProcess, DaemonProcess], undisturbed: list[tuple[str, ...]]
) -> None:
    with stream(fleet[0], "steered", "rounds.policy.commit_seconds=1000") as run:
        run.until_file("stream/**/*")
        ask(run.folder, "pause")
        # Nothing was due to be committed for a quarter of an hour; a pause commits what there is.
        run.until(lambda: status_of(run.folder)["state"] == "paused" and len(status_of(run.folder)["waits"]) == 1)
        paused = rounds_kept(run.folder)
        assert 0 < paused < 33 and len(segment_starts(open_store(run.folder))) == 1
        ask(run.folder, "go_on")
        run.until(lambda: status_of(run.folder)["state"] == "running")
        ask(run.folder, "stop")
        assert isinstance(run.end(), StoppedError)
    assert status_of(run.folder)["state"] == "stopped"
    with resumed(run.folder) as again:
        assert again.end() is None
    assert learned(run.folder) == undisturbed
    assert verify(run.folder) == []


@pytest.mark.slow
@pytest.mark.fault(6)
@pytest.mark.fault(7)
def test_a_stream_waits_for_daemons_that_were_stopped(
    fleet: tuple[Path, DaemonProcess, DaemonProcess], undisturbed: list[tuple[str, ...]]
) -> None:
    root, searcher, learner = fleet
    with stream(root, "stopped") as run:
        run.until_file(SOME_SEGMENTS)
        for number, process in enumerate((searcher, learner), start=1):
            process.signal(signal.SIGSTOP)
            run.until_incident("waiting", count=number)
            run.until(lambda process=process: any(process.address in wait["what"] for wait in status_of(run.folder)["waits"]))
            process.signal(signal.SIGCONT)
            run.until_incident("daemon_back", process.address)
        assert run.end() is None
    assert learned(run.folder) == undisturbed
    assert verify(run.folder) == []


@pytest.mark.slow
@pytest.mark.fault(20)
def test_a_stream_cancels_what_stands_still(fleet: tuple[Path, DaemonProcess, DaemonProcess], undisturbed: list[tuple[str, ...]]) -> None:
    """The compute process is stopped, its daemon answers: alive without progress."""
    root, searcher, _ = fleet
    settings = ("searcher.stall_seconds=60", "learner.stall_seconds=200")
    with stream(root, "stuck", *settings) as run:
        run.until_file(SOME_SEGMENTS)
        (child,) = children(searcher.process.pid)
        os.kill(child, signal.SIGSTOP)
        run.until_incident("stalled", searcher.address)
        assert run.end() is None
    assert learned(run.folder) == undisturbed
    assert verify(run.folder) == []


@pytest.mark.slow
def test_a_window_that_is_far_behind_is_searched_by_another_too(
    fleet: tuple[Path, DaemonProcess, DaemonProcess], undisturbed: list[tuple[str, ...]]
) -> None:
    root, searcher, _ = fleet
    with contextlib.closing(start_searcher(root.with_name("runs-0"))) as slow:
        addresses = f'searcher.addresses=["{slow.address}", "{searcher.address}"]'
        with stream(root, "hedged", addresses, "searcher.stall_seconds=1000") as run:
            run.until_file(SOME_SEGMENTS)
            (child,) = children(slow.process.pid)
            os.kill(child, signal.SIGSTOP)
            run.until_incident("hedged", searcher.address)
            assert run.end() is None
            os.kill(child, signal.SIGCONT)
    assert learned(run.folder) == undisturbed
    assert verify(run.folder) == []


def children(pid: int) -> list[int]:
    """Processes that a thread of `pid` started."""
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
