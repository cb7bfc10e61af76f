"""Killed at any point and resumed, a run learns the same bits as one that was left alone."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from orchestrator.journal import read_journal
from orchestrator.local import RESTARTS
from orchestrator.verify import verify
from tests.orchestrator_runs import complete, gone, learned, orchestrator, write_config
from tests.serving_processes import until

FIRST_SHARD = "rounds/00000/search/*/MANIFEST.json"
TARGETS = "rounds/00000/round.json"
CHECKPOINT = "checkpoints/00000/*/MANIFEST.json"
LATER_SHARD = "rounds/00001/search/*/MANIFEST.json"
LATER_CHECKPOINT = "checkpoints/00001/*/MANIFEST.json"

pytestmark = pytest.mark.timeout(900)


def check_whole(run: Path, undisturbed: list[tuple[str, ...]]) -> None:
    """The run learned the same bits, refers to nothing that is not there, and has whole curves without doubles."""
    assert learned(run) == undisturbed
    assert verify(run) == []
    points = [(record["round"], record["key"], record["step"]) for record in read_journal(run) if record["kind"] == "point"]
    assert len(points) == len(set(points))
    for number in (0, 1):
        assert {step for round, key, step in points if (round, key) == (number, "learn/loss")} == {1, 2, 3, 4, 5, 6}
        assert {step for round, key, step in points if (round, key) == (number, "search/block1/cross_entropy")} == set(range(7))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, ...]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    complete("run", str(write_config(folder)), folder=folder)
    return learned(folder / "runs/tiny-1")


@pytest.mark.fault(1, 3, 4)
@pytest.mark.slow
def test_killed_one_after_the_other(tmp_path: Path, undisturbed: list[tuple[str, ...]]) -> None:
    run = tmp_path / "runs/tiny-1"
    with orchestrator("run", str(write_config(tmp_path)), folder=tmp_path) as process:
        process.await_file(run, FIRST_SHARD)
        os.kill(process.pid_of("searcher"), signal.SIGKILL)
        process.await_file(run, CHECKPOINT)
        process.send(signal.SIGKILL)
        process.wait()
        for pid in (process.pid_of("learner"), *restarted(run, "searcher")):
            assert gone(pid)
    with orchestrator("resume", str(run), folder=tmp_path) as process:
        process.await_file(run, LATER_CHECKPOINT)
        os.kill(process.pid_of("learner"), signal.SIGKILL)
        assert process.wait() == 0, process.text()
        assert gone(*restarted(run, "learner"))
    check_whole(run, undisturbed)


def restarted(run: Path, service: str) -> list[int]:
    """Process ids of the local daemons of `service` that were started in the place of others."""
    told = [record["text"] for record in read_journal(run) if record.get("event") == "daemon_restarted"]
    return [int(match[1]) for text in told if (match := re.match(rf"{service} at \S+: its process.*; process (\d+) was started", text))]


@pytest.mark.fault(4)
@pytest.mark.slow
@pytest.mark.parametrize("moments", [(FIRST_SHARD, CHECKPOINT), (TARGETS, LATER_SHARD), (LATER_CHECKPOINT,)])
def test_killed_orchestrator(tmp_path: Path, undisturbed: list[tuple[str, ...]], moments: tuple[str, ...]) -> None:
    run = tmp_path / "runs/tiny-1"
    arguments = ["run", str(write_config(tmp_path))]
    for moment in moments:
        with orchestrator(*arguments, folder=tmp_path) as process:
            process.await_file(run, moment)
            process.send(signal.SIGKILL)
            process.wait()
            assert gone(process.pid_of("searcher"))
            assert gone(process.pid_of("learner"))
        arguments = ["resume", str(run)]
    complete("resume", str(run), folder=tmp_path)
    check_whole(run, undisturbed)


@pytest.mark.fault(1, 3)
@pytest.mark.slow
@pytest.mark.parametrize(("service", "moment"), [("searcher", FIRST_SHARD), ("learner", CHECKPOINT)])
def test_killed_daemon(tmp_path: Path, undisturbed: list[tuple[str, ...]], service: str, moment: str) -> None:
    """Another is started in its place, which is told; the run goes on and leaves none behind."""
    run = tmp_path / "runs/tiny-1"
    with orchestrator("run", str(write_config(tmp_path)), folder=tmp_path) as process:
        process.await_file(run, moment)
        os.kill(process.pid_of(service), signal.SIGKILL)
        assert process.wait() == 0, process.text()
        assert "has ended with code -9; process" in process.text() and "1 of 3 times" in process.text()
        (another,) = restarted(run, service)
        for pid in (process.pid_of("searcher"), process.pid_of("learner"), another):
            assert gone(pid)
    check_whole(run, undisturbed)


@pytest.mark.fault(1)
@pytest.mark.slow
def test_a_daemon_that_ends_again_and_again_ends_the_run_to_be_resumed(tmp_path: Path) -> None:
    run = tmp_path / "runs/tiny-1"
    with orchestrator("run", str(write_config(tmp_path)), folder=tmp_path) as process:
        process.await_file(run, FIRST_SHARD)
        pid = process.pid_of("searcher")
        for count in range(1, RESTARTS + 1):
            os.kill(pid, signal.SIGKILL)
            until(lambda known=count: len(restarted(run, "searcher")) == known, timeout=120.0)
            pid = restarted(run, "searcher")[-1]
        os.kill(pid, signal.SIGKILL)
        assert process.wait() == 6, process.text()
        assert f"its process, {pid}, has ended with code -9, as those before it, 4 in all; its log is" in process.text()
        assert "no searcher daemon is left" in process.text() and f"orchestrator resume {run}" in process.text()
    assert read_journal(run)[-1]["status"] == "FAILED"


@pytest.mark.slow
def test_interrupted(tmp_path: Path, undisturbed: list[tuple[str, ...]]) -> None:
    run = tmp_path / "runs/tiny-1"
    with orchestrator("run", str(write_config(tmp_path)), folder=tmp_path) as process:
        process.await_file(run, FIRST_SHARD)
        process.send(signal.SIGINT)
        assert process.wait() == 130
        assert f"orchestrator resume {run}" in process.text()
        assert gone(process.pid_of("searcher"))
        assert gone(process.pid_of("learner"))
    assert read_journal(run)[-1]["status"] == "KILLED"
    complete("resume", str(run), folder=tmp_path)
    assert learned(run) == undisturbed
