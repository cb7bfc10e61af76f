"""Runs that are paused, refused the disk, put into a folder with another run's rounds, or whose clock jumps."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from orchestrator import execution
from orchestrator.journal import read_journal
from orchestrator.progress import PlainDisplay
from orchestrator.verify import verify
from repsearch.errors import StoreError
from repsearch.failpoints import VARIABLE
from tests.failpoint_runs import KINDS, Bench, Facts, facts, leftovers, problems
from tests.orchestrator_runs import write_config
from tests.serving_processes import until
from tests.small_disk import can_mount, on_small_disk

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
QUIET = PlainDisplay(Console(quiet=True))


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Facts:
    run, code = bench.start("closed")
    assert code == 0, bench.output.read_text()
    return facts(run)


def processes(bench: Bench, service: str) -> list[int]:
    """A daemon and the process that computes for it."""
    daemon = next(psutil.Process(daemon.process.pid) for daemon in bench.daemons if daemon.service == service)
    return [daemon.pid, *(process.pid for between in daemon.children() for process in between.children())]


def pause(pids: list[int], seconds: float) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    threading.Event().wait(seconds)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.fault(7)
def test_a_paused_learner_goes_on(bench: Bench, undisturbed: Facts) -> None:
    run = bench.next_run("closed")
    bench.begin("closed", run)
    until(lambda: (run / "rounds/00000/round.json").exists(), 60)
    pause(processes(bench, "learner"), 4.0)
    assert bench.orchestrators.wait() == 0, bench.output.read_text()
    assert problems(bench, run, undisturbed) == []


@pytest.mark.fault(7)
def test_a_paused_orchestrator_keeps_its_run_and_goes_on(bench: Bench, undisturbed: Facts) -> None:
    run = bench.next_run("closed")
    pid = bench.begin("closed", run)
    until(lambda: (run / "rounds/00000/round.json").exists(), 60)
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(2):
            with pytest.raises(StoreError, match=f"in use by process {pid} "):
                execution.resume(run, QUIET)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert bench.orchestrators.wait() == 0, bench.output.read_text()
    assert problems(bench, run, undisturbed) == []


@pytest.mark.fault(22)
@pytest.mark.parametrize("program", ["searcher", "learner"])
@pytest.mark.parametrize("kind", ["closed", "streaming"])
def test_a_daemon_whose_disk_is_full_says_so_and_the_run_is_resumed(bench: Bench, program: str, kind: str) -> None:
    expected, code = bench.start(kind)
    assert code == 0
    pids = processes(bench, program)
    limits = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids}
    try:
        for pid, (_, hard) in limits.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (200, hard))
        run, code = bench.start(kind)
    finally:
        for pid, limit in limits.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)
    assert code == StoreError.exit_code, bench.output.read_text()
    assert "cannot be written" in bench.output.read_text() and "make room on the disk" in bench.output.read_text()
    assert f"orchestrator resume {run}" in bench.output.read_text()
    assert bench.resume(run) == 0, bench.output.read_text()
    assert problems(bench, run, facts(expected)) == []


@pytest.mark.fault(22)
def test_an_orchestrator_whose_disk_is_full_says_so_and_the_run_is_resumed(bench: Bench, undisturbed: Facts) -> None:
    run = bench.next_run("closed")
    pid = bench.begin("closed", run)
    until(lambda: (run / "journal.jsonl").exists(), 60)
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (6000, hard))
    assert bench.orchestrators.wait() == StoreError.exit_code, bench.output.read_text()
    assert "cannot be written" in bench.output.read_text()
    assert bench.resume(run) == 0, bench.output.read_text()
    assert problems(bench, run, undisturbed) == []


@pytest.mark.fault(22)
def test_a_run_whose_disk_gets_full_says_so_and_is_resumed_with_room(tmp_path: Path) -> None:
    """A real disk, which all of the run's processes share; elsewhere the tests above show the same by limits of files."""
    if not can_mount():
        pytest.skip("this machine does not let us mount a tmpfs; RLIMIT_FSIZE stands for a full disk")
    disk, kept, said = tmp_path / "runs", tmp_path / "kept", tmp_path / "said.txt"
    disk.mkdir()
    command = shlex.join([sys.executable, "-m", "orchestrator"])
    first = f"code=0; {command} run {write_config(tmp_path)} --name full > {said} 2>&1 || code=$?; test $code = {StoreError.exit_code}"
    commands = [["sh", "-c", first], ["room"], ["sh", "-c", f"{command} resume {disk / 'full'} >> {said} 2>&1"]]
    done = subprocess.run(
        on_small_disk(disk, 400, *commands, keep=kept), cwd=tmp_path, timeout=400, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, said.read_text()
    assert "No space left on device; make room" in said.read_text()
    assert f"orchestrator resume {disk / 'full'}" in said.read_text()
    assert verify(kept / "full") == []
    assert len(facts(kept / "full").networks) == 2
    assert leftovers(kept / "full") == []


@pytest.mark.fault(25)
def test_rounds_of_another_run_in_the_folder_are_not_taken_for_its_own(bench: Bench, undisturbed: Facts) -> None:
    other, code = bench.start("closed")
    assert code == 0
    run, code = bench.start("closed", **{VARIABLE: "round.report.after@2"})
    assert code == -signal.SIGKILL
    shutil.copytree(other / "rounds/00002", run / "rounds/00002")
    shutil.copytree(other / "rounds/00003", run / "rounds/00003")
    assert bench.resume(run) == StoreError.exit_code
    assert "rounds/00002" in bench.output.read_text() and "another run" in bench.output.read_text()
    for number in ("00002", "00003"):
        shutil.rmtree(run / "rounds" / number)
    assert bench.resume(run) == 0, bench.output.read_text()
    assert problems(bench, run, undisturbed) == []


@pytest.mark.fault(25)
def test_a_run_is_not_started_into_the_folder_of_another(bench: Bench, undisturbed: Facts) -> None:
    run, code = bench.start("closed")
    assert code == 0
    before = (run / "run.json").read_bytes()
    assert bench.repeat("closed", run)[1] == StoreError.exit_code
    assert "the run name is taken" in bench.output.read_text()
    assert (run / "run.json").read_bytes() == before


@pytest.mark.fault(32)
def test_a_clock_that_jumps_by_an_hour_changes_nothing(bench: Bench, undisturbed: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    real, jumps = time.time, itertools.cycle([0.0, 3600.0, -3600.0])

    def jumping() -> float:
        # gRPC reads the clock and hands a time to its core at once; a jump between the two is none of ours to survive.
        ours = not str(sys._getframe(1).f_globals["__name__"]).startswith("grpc")
        return real() + (next(jumps) if ours else 0.0)

    monkeypatch.setattr("time.time", jumping)
    run = bench.next_run("closed")
    execution.start(execution.prepare(bench.config, list(KINDS["closed"]), run.name), QUIET)
    assert problems(bench, run, undisturbed) == []
    times = [record["time"] for record in read_journal(run)]
    assert max(times) - min(times) > 3600
