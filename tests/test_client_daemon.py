"""The client against daemons that are cut off, killed, stopped, replaced, or not ours."""

from __future__ import annotations

import http.server
import signal
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from orchestrator.client import DaemonClient
from repsearch import __version__
from repsearch.errors import DaemonError
from repsearch.rpc.v1 import jobs_pb2, jobs_pb2_grpc
from repsearch.serving import PROTOCOL_VERSION
from tests.serving_processes import daemon, finish, request, until
from tests.serving_proxy import Proxy


@contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    between = Proxy(target)
    try:
        yield between
    finally:
        between.close()


@pytest.mark.fault(16)
def test_watch_goes_on_after_cuts_without_gap_or_double(tmp_path: Path) -> None:
    with daemon(tmp_path / "store") as server, proxy(server.address) as between, DaemonClient(between.address, "searcher") as client:
        client.connect()
        job = client.start(request(do="count", count=150, pause=0.02))
        kept = []
        for event in client.watch(job.job_id):
            if event.sequence:
                kept.append(event)
                if event.sequence % 40 == 0:
                    between.cut()
        assert [event.sequence for event in kept] == list(range(1, 154))
        assert [point.step for event in kept for point in event.points.points] == list(range(150))
        assert kept[-1].state.state == jobs_pb2.JOB_STATE_SUCCEEDED


@pytest.mark.fault(13)
def test_start_whose_answer_is_lost_starts_one_job(tmp_path: Path) -> None:
    with daemon(tmp_path / "store") as server, proxy(server.address) as between, DaemonClient(between.address, "searcher") as client:
        client.connect()
        with server.client() as direct, futures.ThreadPoolExecutor(1) as pool:
            between.muted = True
            answer = pool.submit(client.start, request(do="hold"))
            until(lambda: len(direct.connect().unfinished_jobs) == 1)
            between.muted = False
            between.cut()
            job = answer.result(10)
            assert list(direct.connect().unfinished_jobs) == [job.job_id]


def test_nothing_listening_is_an_error_with_address_and_hint() -> None:
    with DaemonClient("127.0.0.1:1", "searcher", connect_s=0.5) as client, pytest.raises(DaemonError) as error:
        client.connect()
    assert "searcher at 127.0.0.1:1: unavailable" in str(error.value) and "is it running" in str(error.value)


@pytest.mark.fault(15)
def test_peer_that_never_answers_is_an_error(tmp_path: Path) -> None:
    with daemon(tmp_path / "store") as server, proxy(server.address) as between:
        between.forwarding = False
        begin = time.monotonic()
        with DaemonClient(between.address, "searcher", connect_s=1.0) as client, pytest.raises(DaemonError, match=between.address):
            client.connect()
        assert time.monotonic() - begin < 5


def test_another_kind_of_server_is_an_error() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        other.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=other.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{other.server_address[1]}"
        with DaemonClient(address, "searcher", connect_s=1.0) as client, pytest.raises(DaemonError, match=address):
            client.connect()
        other.shutdown()


def test_wrong_service_is_named(tmp_path: Path) -> None:
    with daemon(tmp_path / "store", service="learner") as server:
        words = "does not serve the searcher protocol: it is a learner"
        with DaemonClient(server.address, "searcher") as client, pytest.raises(DaemonError, match=words):
            client.connect()


class FixedInfo(jobs_pb2_grpc.SearcherServicer):
    """A searcher that says of itself what it is told to."""

    def __init__(self, info: jobs_pb2.Info) -> None:
        self._info = info

    def GetInfo(self, request: jobs_pb2.GetInfoRequest, context: object) -> jobs_pb2.Info:  # noqa: N802
        return self._info


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (
            jobs_pb2.Info(service="searcher", protocol_version=99, package_version=__version__),
            "speaks protocol 99, we speak",
        ),
        (jobs_pb2.Info(service="searcher", protocol_version=PROTOCOL_VERSION, package_version="0.0.7"), "is version 0.0.7, we are"),
        (jobs_pb2.Info(service="prophet", protocol_version=PROTOCOL_VERSION, package_version=__version__), "is a prophet, not a searcher"),
    ],
)
def test_other_versions_are_refused(info: jobs_pb2.Info, words: str) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    jobs_pb2_grpc.add_SearcherServicer_to_server(FixedInfo(info), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        with DaemonClient(address, "searcher") as client, pytest.raises(DaemonError, match=words) as error:
            client.connect()
        assert address in str(error.value)
    finally:
        server.stop(0).wait()


@pytest.mark.fault(1)
def test_killed_daemon_ends_watch_and_calls(tmp_path: Path) -> None:
    with daemon(tmp_path / "store") as server, server.client(retry_s=1.0) as client:
        job = client.start(request(do="hold"))
        events = client.watch(job.job_id)
        next(events)
        server.signal(signal.SIGKILL)
        with pytest.raises(DaemonError, match=server.address):
            list(events)
        with pytest.raises(DaemonError, match=server.address):
            client.get(job.job_id)


@pytest.mark.fault(9)
def test_daemon_started_anew_is_noticed(tmp_path: Path) -> None:
    with daemon(tmp_path / "store") as server, server.client() as client:
        job = client.start(request(do="hold"))
        events = client.watch(job.job_id)
        next(events)
        server.signal(signal.SIGKILL)
        server.wait()
        with daemon(tmp_path / "store", "--listen", server.address):
            with pytest.raises(DaemonError, match="started anew"):
                list(events)
            with pytest.raises(DaemonError, match="started anew"):
                client.start(request("other"))
            client.connect()
            assert finish(client, client.start(request("third")).job_id).state == jobs_pb2.JOB_STATE_SUCCEEDED


@pytest.mark.fault(15)
def test_stopped_daemon_is_noticed_within_20_seconds(tmp_path: Path) -> None:
    with daemon(tmp_path / "store") as server, server.client() as client:
        job = client.start(request(do="hold"))
        events = client.watch(job.job_id)
        next(events)
        begin = time.monotonic()
        server.signal(signal.SIGSTOP)
        with pytest.raises(DaemonError, match=server.address):
            list(events)
        assert time.monotonic() - begin < 20


def test_slow_consumer_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.client.SILENCE_S", 0.3)
    with daemon(tmp_path / "store") as server, server.client() as client:
        job = client.start(request(do="count", count=30, pause=0.05))
        sequences = []
        for event in client.watch(job.job_id):
            if event.sequence:
                sequences.append(event.sequence)
                if event.sequence in (5, 10):
                    threading.Event().wait(0.8)
        assert sequences == list(range(1, 34))


def test_closed_client_says_so(tmp_path: Path) -> None:
    with daemon(tmp_path / "store") as server:
        client = server.client()
        job = client.start(request(do="hold"))
        events = client.watch(job.job_id)
        next(events)
        client.close()
        for call in (lambda: list(events), lambda: client.get(job.job_id), lambda: list(client.watch(job.job_id))):
            with pytest.raises(DaemonError, match="closed"):
                call()
