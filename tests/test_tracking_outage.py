"""MLflow dead, hung, frozen or fresh: the run never waits, says so once, and `sync` gives what an undisturbed run gives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.journal import Journal
from orchestrator.tracking import MlflowTracker, sync
from repsearch.errors import DaemonError
from tests.tracking_helpers import EXPERIMENT, begin, closed_port, database, end, held, hung_server, results, whole_round, whole_run


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timeouts as in use, but shorter."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What MLflow holds of the undisturbed run."""
    root = tmp_path_factory.mktemp("undisturbed")
    uri = database(root)
    whole_run(root / "run")
    tracker = MlflowTracker(root / "run", uri, EXPERIMENT)
    assert tracker.close(60)
    return results(held(uri))


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Address and process group of a real `mlflow server`; it starts in seconds, so the tests share it, each with its experiment."""
    root = tmp_path_factory.mktemp("server")
    uri = database(root)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--artifacts-destination", str(root / "artifacts")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_healthy(address)
        yield address, server.pid
    finally:
        os.killpg(server.pid, signal.SIGCONT)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_until_healthy(address: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=1) as answer:
                assert answer.status == 200
                return
        except OSError:
            assert time.monotonic() < deadline, "the MLflow server did not start"
            threading.Event().wait(0.1)


@pytest.mark.fault(28)
def test_a_closed_port_costs_the_run_nothing_and_is_told_once(tmp_path: Path, expected: dict[str, Any]) -> None:
    messages: list[str] = []
    folder = tmp_path / "run"
    folder.mkdir()
    uri = closed_port()
    tracker = MlflowTracker(folder, uri, EXPERIMENT, tell=messages.append)
    with Journal(folder) as journal:
        begin(journal)
        for round in (0, 1):
            whole_round(journal, round)
        end(journal)
    start = time.monotonic()
    assert not tracker.close(10)
    assert time.monotonic() - start < 9
    assert len(messages) == 1
    assert uri in messages[0]
    assert f"orchestrator sync {folder}" in messages[0]
    with pytest.raises(DaemonError, match=uri):
        sync(folder, uri=uri)
    live = database(tmp_path)
    assert sync(folder).uri == live
    assert results(held(live)) == expected


@pytest.mark.fault(28)
def test_put_returns_at_once_while_the_server_hangs_and_close_keeps_its_bound(tmp_path: Path, expected: dict[str, Any]) -> None:
    messages: list[str] = []
    folder = tmp_path / "run"
    with hung_server() as uri:
        whole_run(folder)
        tracker = MlflowTracker(folder, uri, EXPERIMENT, tell=messages.append)
        start = time.monotonic()
        for _ in range(10_000):
            tracker.put({})
        assert time.monotonic() - start < 1
        start = time.monotonic()
        assert not tracker.close(0.5)
        assert time.monotonic() - start < 1.5
    assert len(messages) == 1
    tracker._thread.join(30)
    live = database(tmp_path)
    sync(folder)
    assert results(held(live)) == expected


@pytest.mark.fault(28)
def test_a_hung_server_does_not_keep_the_process_from_ending(tmp_path: Path) -> None:
    whole_run(tmp_path / "run")
    code = f"""
import time
from pathlib import Path
from orchestrator.tracking import MlflowTracker
tracker = MlflowTracker(Path({str(tmp_path / "run")!r}), URI, "test")
while "mlflow" not in __import__("sys").modules:
    time.sleep(0.05)
time.sleep(2)
start = time.monotonic()
assert not tracker.close(1)
print(time.monotonic())
"""
    with hung_server() as uri:
        environment = {**os.environ, "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
        done = subprocess.run(
            [sys.executable, "-c", code.replace("URI", repr(uri))], capture_output=True, text=True, timeout=50, env=environment
        )
        after = time.monotonic()
    assert done.returncode == 0, done.stderr
    assert after - float(done.stdout) < 5
    assert done.stderr.count("orchestrator sync") == 1


@pytest.mark.fault(28)
def test_a_real_server_holds_the_same_also_when_it_freezes_in_between(
    tmp_path: Path, expected: dict[str, Any], mlflow_server: tuple[str, int]
) -> None:
    uri, group = mlflow_server
    messages: list[str] = []
    folder = tmp_path / "run"
    folder.mkdir()
    with Journal(folder) as journal:
        begin(journal)
        whole_round(journal, 0)
        tracker = MlflowTracker(folder, uri, EXPERIMENT, tell=messages.append)
        deadline = time.monotonic() + 30
        while not (folder / "tracking.json").exists():
            assert time.monotonic() < deadline
            threading.Event().wait(0.02)
        os.killpg(group, signal.SIGSTOP)
        whole_round(journal, 1)
        tracker.put({})
        while not messages:
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)
        os.killpg(group, signal.SIGCONT)
        end(journal)
        tracker.put({})
        assert tracker.close(60)
        assert results(held(uri)) == expected
    assert len(messages) == 1


def test_sync_to_a_real_server_twice(tmp_path: Path, expected: dict[str, Any], mlflow_server: tuple[str, int]) -> None:
    uri, _ = mlflow_server
    whole_run(tmp_path / "run")
    assert sync(tmp_path / "run", uri=uri, experiment="synced").records > 0
    sync(tmp_path / "run", uri=uri, experiment="synced")
    assert results(held(uri, "synced")) == expected


@pytest.mark.fault(29)
def test_three_processes_at_once_on_a_fresh_database(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from orchestrator.tracking import MlflowTracker
tracker = MlflowTracker(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
sys.exit(0 if tracker.close(120) else 1)
"""
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    started = []
    for name in "abc":
        whole_run(tmp_path / name, rounds=1)
        # Two share an experiment, so that its creation is raced for as well.
        command = [sys.executable, "-c", code, str(tmp_path / name), uri, "x" if name == "a" else f"y{name}"]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, errors = process.communicate(timeout=150)
        assert process.returncode == 0, errors
        assert not errors
    for experiment in ("x", "yb", "yc"):
        assert held(uri, experiment)["status"] == "FINISHED"
