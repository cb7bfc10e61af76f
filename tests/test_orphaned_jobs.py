"""Jobs whose orchestrator is gone finish or stop as the daemon was told, and nothing holds a device for ever."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from repsearch.rpc.v1 import jobs_pb2
from repsearch.serving.lease import Leases
from tests.serving_processes import DaemonProcess, alive, daemon, request, until


def hurried(store: Path, orphaned: str) -> tuple[str, ...]:
    store.mkdir(exist_ok=True)
    return ("--orphaned", orphaned, "--orphaned-after", "1")


def leave_behind(server: DaemonProcess, store: Path, **job: object) -> int:
    """Start a job that runs, leave without a word, and return the id of its compute process."""
    with server.client() as client:
        client.start(request(path=str(store / "run"), **job))
        until(lambda: (store / "run/started").exists() and (store / "run/started").read_text() != "", 60)
    return int((store / "run/started").read_text())


def test_a_lease_runs_down_unless_it_is_watched() -> None:
    now = 0.0
    leases = Leases(lambda: now)
    assert leases.idle() == 0
    leases.renew("night")
    now = 10.0
    leases.renew("day")
    assert (leases.silent("night"), leases.silent("day"), leases.idle()) == (10, 0, 0)
    with leases.watching("night"):
        now = 1000.0
        assert (leases.silent("night"), leases.silent("day"), leases.idle()) == (0, 990, 0)
    now = 1001.0
    assert (leases.silent("night"), leases.idle()) == (1, 1)


def test_a_job_that_nobody_asks_for_is_stopped(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with daemon(store, *hurried(store, "stop")) as server:
        used = leave_behind(server, store, do="hold")
        until(lambda: "is cancelled: --orphaned stop" in server.log(), 60)
        # Its memory is given back; the daemon itself serves on.
        until(lambda: "the compute process is replaced" in server.log() and not alive(used), 60)
        with server.client() as client:
            until(lambda: client.connect().unfinished_jobs == [], 60)
            job = client.start(request("later"))
            assert list(client.watch(job.job_id))[-1].state.state == jobs_pb2.JOB_STATE_SUCCEEDED


def test_a_job_that_nobody_asks_for_finishes_if_it_advances(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with daemon(store, *hurried(store, "finish")) as server:
        with server.client() as client:
            job = client.start(request(do="count", count=60, pause=0.1))
            behind = client.start(request("behind"))
        until(lambda: "it may finish" in server.log(), 60)
        assert "nobody waits for its turn" in server.log()
        until(lambda: re.search(rf"job {job.job_id} ends: \w+", server.log()) is not None, 60)
        with server.client() as client:
            assert client.get(job.job_id).state == jobs_pb2.JOB_STATE_SUCCEEDED
            assert client.get(behind.job_id).state == jobs_pb2.JOB_STATE_CANCELLED


@pytest.mark.parametrize("job", [{"do": "hold"}, {"do": "stream"}])
def test_a_job_that_would_never_finish_does_not_hold_the_device(tmp_path: Path, job: dict[str, str]) -> None:
    store = tmp_path / "store"
    with daemon(store, *hurried(store, "finish")) as server:
        if job["do"] == "hold":
            leave_behind(server, store, **job)
            reason = "it has not advanced for"
        else:
            with server.client() as client:
                message = request(**job)
                message.stream_search.SetInParent()
                client.start(message)
            reason = "it waits for items"
        until(lambda: reason in server.log() and "the compute process is replaced" in server.log(), 60)


def test_a_daemon_may_leave_with_its_orchestrator(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with daemon(store, *hurried(store, "exit")) as server:
        used = leave_behind(server, store, do="hold")
        assert server.wait(60) == 0
        assert not alive(used)


def test_a_watched_job_is_not_orphaned(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with daemon(store, *hurried(store, "stop")) as server, server.client() as client:
        job = client.start(request(do="count", count=40, pause=0.1))
        assert list(client.watch(job.job_id))[-1].state.state == jobs_pb2.JOB_STATE_SUCCEEDED
        assert "nobody has asked" not in server.log()


def test_a_client_that_is_stopped_counts_as_gone(tmp_path: Path) -> None:
    """Its connection is open, but nobody answers there; keepalive finds out."""
    store = tmp_path / "store"
    with daemon(store, *hurried(store, "stop")) as server:
        import subprocess
        import sys

        code = (
            "import sys\n"
            "from orchestrator.client import DaemonClient\n"
            "from tests.serving_processes import request\n"
            "client = DaemonClient(sys.argv[1], 'searcher'); client.connect()\n"
            "job = client.start(request(do='hold', path=sys.argv[2]))\n"
            "for event in client.watch(job.job_id): print('event', flush=True)\n"
        )
        watcher = subprocess.Popen([sys.executable, "-c", code, server.address, str(store / "run")], stdout=subprocess.PIPE, text=True)
        try:
            assert watcher.stdout is not None and watcher.stdout.readline() == "event\n"
            watcher.send_signal(signal.SIGSTOP)
            until(lambda: "is cancelled: --orphaned stop" in server.log(), 90)
        finally:
            watcher.kill()
            watcher.wait()
            watcher.stdout.close()
