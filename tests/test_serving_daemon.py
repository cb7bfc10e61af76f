"""The life of a daemon: start, health, draining, death; with real processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from repsearch.errors import DaemonError
from repsearch.rpc.v1 import jobs_pb2, jobs_pb2_grpc
from repsearch.serving.servicer import NAMES, STREAMS
from tests.serving_processes import alive, daemon, finish, request, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health(channel: grpc.Channel, name: str = "", *, timeout: float = 1.0) -> int:
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=timeout).status


def started(store: Path, run: str = "run") -> int:
    """Wait for the job of `run` to compute; return the id of its process."""
    path = store / run / "started"
    until(lambda: path.exists() and path.read_text() != "")
    return int(path.read_text())


@pytest.mark.fault(20)
@pytest.mark.parametrize("config", [{"do": "busy"}, {"do": "gil", "seconds": 4}])
def test_health_answers_within_a_second_while_computing(tmp_path: Path, config: dict) -> None:
    with daemon(tmp_path / "store") as server, server.client() as client, grpc.insecure_channel(server.address) as channel:
        job = client.start(request(**config))
        until(lambda: client.get(job.job_id).state == jobs_pb2.JOB_STATE_RUNNING)
        slowest = 0.0
        for _ in range(20):
            begin = time.monotonic()
            assert health(channel) == health(channel, NAMES["searcher"]) == SERVING
            slowest = max(slowest, time.monotonic() - begin)
        assert slowest < 1.0
        assert client.get(job.job_id).state == jobs_pb2.JOB_STATE_RUNNING
        client.cancel(job.job_id, 1)
        assert finish(client, job.job_id).state in (jobs_pb2.JOB_STATE_CANCELLED, jobs_pb2.JOB_STATE_SUCCEEDED)


@pytest.mark.fault(19)
def test_health_and_calls_find_a_thread_when_all_streams_are_open(tmp_path: Path) -> None:
    with daemon(tmp_path / "store") as server, server.client() as client, grpc.insecure_channel(server.address) as channel:
        job = client.start(request(do="hold"))
        stub = jobs_pb2_grpc.SearcherStub(channel)
        watch = jobs_pb2.WatchRequest(job_id=job.job_id)
        streams = [stub.Watch(watch) for _ in range(STREAMS)]
        for stream in streams:
            next(stream)
        with pytest.raises(grpc.RpcError) as error:
            next(stub.Watch(watch))
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert health(channel) == SERVING
        assert client.get(job.job_id).job_id == job.job_id
        for stream in streams:
            stream.cancel()
        (tmp_path / "store" / "run").mkdir(exist_ok=True)
        (tmp_path / "store" / "run" / "release").touch()

        def served_again() -> bool:
            try:
                return finish(client, job.job_id).state == jobs_pb2.JOB_STATE_SUCCEEDED
            except DaemonError:
                return False

        until(served_again)


def test_reflection_lists_the_service(tmp_path: Path) -> None:
    with daemon(tmp_path / "store", service="learner") as server, grpc.insecure_channel(server.address) as channel:
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = next(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask])))
        names = {service.name for service in answer.list_services_response.service}
        assert {NAMES["learner"], "grpc.health.v1.Health"} <= names
        assert health(channel, NAMES["learner"]) == SERVING


@pytest.mark.fault(5)
def test_sigterm_lets_the_running_job_finish(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with daemon(store) as server, server.client() as client, grpc.insecure_channel(server.address) as channel:
        job = client.start(request(do="hold"))
        waiting = client.start(request("waiting"))
        started(store)
        events = client.watch(job.job_id)
        next(events)
        server.signal(signal.SIGTERM)
        until(lambda: client.connect().draining)
        assert health(channel) == health(channel, NAMES["searcher"]) == NOT_SERVING
        with pytest.raises(DaemonError, match="takes no more jobs"):
            client.start(request("new"))
        assert client.start(request(do="hold")).job_id == job.job_id
        assert client.get(waiting.job_id).state == jobs_pb2.JOB_STATE_CANCELLED
        (store / "run" / "release").touch()
        assert list(events)[-1].state.state == jobs_pb2.JOB_STATE_SUCCEEDED
        assert server.wait() == 0


@pytest.mark.fault(5)
def test_sigterm_cancels_the_job_after_the_grace_time(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with daemon(store, "--grace", "0.3") as server, server.client() as client:
        job = client.start(request(do="hold"))
        started(store)
        events = client.watch(job.job_id)
        next(events)
        server.signal(signal.SIGTERM)
        assert list(events)[-1].state.state == jobs_pb2.JOB_STATE_CANCELLED
        assert server.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_daemon_stops_on_a_signal(tmp_path: Path, number: int) -> None:
    with daemon(tmp_path / "store") as server:
        server.signal(number)
        assert server.wait() == 0


@pytest.mark.fault(5)
def test_second_sigterm_stops_at_once(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with daemon(store) as server, server.client() as client:
        job = client.start(request(do="gil", seconds=60))
        child = started(store)
        events = client.watch(job.job_id)
        next(events)
        server.signal(signal.SIGTERM)
        until(lambda: client.connect().draining)
        begin = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == 130
        assert time.monotonic() - begin < 5
        assert list(events)[-1].state.state == jobs_pb2.JOB_STATE_CANCELLED
        assert not alive(child)


@pytest.mark.fault(11)
@pytest.mark.parametrize("config", [{"do": "hold"}, {"do": "gil", "seconds": 60}])
def test_compute_process_dies_with_its_daemon(tmp_path: Path, config: dict) -> None:
    store = tmp_path / "store"
    with daemon(store) as server, server.client() as client:
        client.start(request(**config))
        child = started(store)
        assert alive(child)
        server.signal(signal.SIGKILL)
        server.wait()
        until(lambda: not alive(child))


def test_daemon_ends_with_stdin(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with daemon(store, "--exit-with-stdin") as server, server.client() as client:
        client.start(request(do="gil", seconds=60))
        child = started(store)
        server.process.stdin.close()
        assert server.wait() == 0
        assert not alive(child)


@pytest.mark.fault(20)
def test_job_that_ignores_its_cancellation_is_ended(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with daemon(store) as server, server.client() as client:
        job = client.start(request(do="gil", seconds=60))
        child = started(store)
        client.cancel(job.job_id, 1)
        assert finish(client, job.job_id).state == jobs_pb2.JOB_STATE_CANCELLED
        until(lambda: not alive(child))
        assert finish(client, client.start(request("next")).job_id).state == jobs_pb2.JOB_STATE_SUCCEEDED


def test_health_tells_when_the_compute_process_is_gone(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with daemon(store) as server, server.client() as client, grpc.insecure_channel(server.address) as channel:
        child = int(finish(client, client.start(request(do="pid")).job_id).result.path)
        changes = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(changes).status == SERVING
        os.kill(child, signal.SIGKILL)
        assert next(changes).status == NOT_SERVING
        assert next(changes).status == SERVING
        changes.cancel()


def test_daemon_process_does_not_load_torch(tmp_path: Path) -> None:
    with daemon(tmp_path / "store") as server, server.client() as client:
        finish(client, client.start(request()).job_id)
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" not in maps


def test_sockets_are_closed_when_a_client_leaves(tmp_path: Path) -> None:
    """Threads of streams are given back: more streams than there are threads, one after another."""
    store = tmp_path / "store"
    with daemon(store) as server, server.client() as client:
        job = client.start(request(do="hold"))
        for _ in range(STREAMS + 40):
            events = client.watch(job.job_id)
            next(events)
            events.close()
        (store / "run").mkdir(exist_ok=True)
        (store / "run" / "release").touch()
        assert finish(client, job.job_id).state == jobs_pb2.JOB_STATE_SUCCEEDED
