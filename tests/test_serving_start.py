"""How a daemon starts, refuses to start, and writes its log; with real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving_processes import ROOT, daemon, finish, request


def refused(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.serving_daemon", "searcher", "serve", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)


@pytest.mark.fault(8)
def test_port_in_use_is_refused(tmp_path: Path) -> None:
    with daemon(tmp_path / "store") as server:
        result = refused("--listen", server.address, "--store", str(tmp_path / "other"))
    assert result.returncode == 5
    assert f"cannot listen on {server.address}: Address already in use" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("listen", ["7001", "localhost:", "127.0.0.1:99999", ""])
def test_malformed_address_is_refused(tmp_path: Path, listen: str) -> None:
    result = refused("--listen", listen, "--store", str(tmp_path))
    assert result.returncode == 2 and "give host:port" in result.stderr


def test_address_of_another_host_is_refused(tmp_path: Path) -> None:
    result = refused("--listen", "192.0.2.1:0", "--store", str(tmp_path), "--insecure")
    assert result.returncode == 5 and "cannot listen on 192.0.2.1:0" in result.stderr


@pytest.mark.fault(22)
def test_store_roots_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for store, words in (
        (str(tmp_path / "file"), "is not a writable folder"),
        ("/proc/none", "not a writable"),
        ("s3://b/r", "know folders only"),
        ("gs://b/r", "only folders and s3://"),
    ):
        result = refused("--listen", "127.0.0.1:0", "--store", store)
        assert result.returncode == 4 and words in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("device", ["cuda:7", "gpu"])
def test_device_that_is_not_there_is_refused(tmp_path: Path, device: str) -> None:
    result = refused("--listen", "127.0.0.1:0", "--store", str(tmp_path), "--device", device)
    assert result.returncode == 5
    assert f"error: device '{device}' is not there" in result.stderr and "available: cpu" in result.stderr
    assert result.stdout == ""


def test_refusal_to_start_is_json_too(tmp_path: Path) -> None:
    result = refused("--listen", "nowhere", "--store", str(tmp_path), "--log-format", "json")
    assert result.returncode == 2
    assert [json.loads(line)["level"] for line in result.stderr.splitlines()] == ["error"]


def test_log_lines_are_json(tmp_path: Path) -> None:
    with daemon(tmp_path / "store", "--log-format", "json") as server:
        with server.client() as client:
            finish(client, client.start(request("talk", do="talk")).job_id)
            finish(client, client.start(request("bug", do="bug")).job_id)
            finish(client, client.start(request("crash", do="crash")).job_id)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    records = [json.loads(line) for line in server.log().splitlines()]
    assert all({"time", "level", "logger", "service", "pid", "message"} <= set(record) for record in records)
    assert any(record["message"] == "a plain line on stdout" for record in records)
    assert {record["incarnation"] for record in records if record["logger"] != "root"} == {server.ready["incarnation"]}
    said = [record for record in records if record["message"].startswith("job ") and "ZeroDivisionError" in record["message"]]
    assert [(record["logger"], record["run"], record["kind"]) for record in said] == [("compute", "run", "check")]


def test_log_lines_of_a_search_tell_round_shard_and_attempt(tmp_path: Path) -> None:
    """Of the daemon and of its compute process."""
    with daemon(tmp_path / "store", "--log-format", "json") as server, server.client() as client:
        message = request("s", run="run", do="bug")
        message.search.round, message.search.shard, message.search.attempt = 3, 17, 2
        message.search.output_path, message.search.network.path = "out", "in"
        job = finish(client, client.start(message).job_id)
        records = [json.loads(line) for line in server.log().splitlines()]
    wanted = {"run": "run", "round": 3, "shard": 17, "attempt": 2, "job": job.job_id, "kind": "search"}
    for logger in ("supervisor", "compute"):
        assert any(wanted.items() <= record.items() for record in records if record["logger"] == logger), logger


@pytest.mark.parametrize("program", ["searcher", "learner"])
def test_help_imports_neither_torch_nor_grpc(program: str) -> None:
    code = (
        f"import sys, {program}.cli as c\nsys.argv = ['{program}', 'serve', '--help']\n"
        "try:\n    c.main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'grpc', 'numpy'} & set(sys.modules), 'heavy imports'"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "--listen" in result.stdout and "--exit-with-stdin" in result.stdout
