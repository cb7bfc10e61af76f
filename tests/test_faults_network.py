"""Calls whose request or answer is lost, latency, blackouts, and connections that lead nowhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from orchestrator.client import DaemonClient
from repsearch.errors import DaemonError
from repsearch.rpc.v1 import jobs_pb2
from tests.serving_processes import DaemonProcess, daemon, finish, request, until
from tests.serving_proxy import Proxy

pytestmark = pytest.mark.faults

STREAM = {"do": "stream"}


def stream_request() -> jobs_pb2.StartRequest:
    message = request("stream", **STREAM)
    message.stream_search.SetInParent()
    return message


def item(round: int) -> jobs_pb2.Item:
    network = jobs_pb2.Reference(path="network", digest="d")
    return jobs_pb2.Item(search=jobs_pb2.SearchSpec(round=round, network=network, output_path="out"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with daemon(tmp_path_factory.mktemp("network") / "store") as process:
        yield process


@contextmanager
def through(server: DaemonProcess, **bounds: float) -> Iterator[tuple[Proxy, DaemonClient]]:
    between = Proxy(server.address)
    try:
        with DaemonClient(between.address, "searcher", **bounds) as client:
            client.connect()
            yield between, client
    finally:
        between.close()


CALLS: dict[str, Callable[[DaemonClient, jobs_pb2.Job, str], Any]] = {
    "GetInfo": lambda client, job, name: client.connect(),
    "Start": lambda client, job, name: client.start(request(name, run=name)),
    "Push": lambda client, job, name: client.push(job.job_id, job.term, 1, item(7)),
    "Get": lambda client, job, name: client.get(job.job_id),
    "Watch": lambda client, job, name: next(client.watch(job.job_id)),
    "Cancel": lambda client, job, name: client.cancel(job.job_id, job.term),
}


@pytest.mark.fault(13)
@pytest.mark.parametrize("lost", ["request", "answer"])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_of_which_a_part_is_lost_has_the_effect_of_one(server: DaemonProcess, call: str, lost: str) -> None:
    name = f"{call}-{lost}"
    started = stream_request()
    started.run_id = started.request_id = f"stream-{name}"
    with through(server, retry_s=20.0) as (between, client), ThreadPoolExecutor(1) as pool, server.client() as direct:
        job = direct.start(started)
        if lost == "request":
            between.forwarding = False
        else:
            between.muted = True
        answer = pool.submit(CALLS[call], client, job, name)
        # An answer is lost once the daemon has acted on the call, a request at any time.
        if lost == "answer" and call == "Start":
            until(lambda: len(direct.connect().unfinished_jobs) == 2)
        else:
            threading.Event().wait(0.3)
        between.forwarding, between.muted = True, False
        between.cut()
        answer.result(30)
        if call == "Push":
            direct.push(job.job_id, job.term, 2, jobs_pb2.Item(end=jobs_pb2.End()))
            done = [event.item_done for event in direct.watch(job.job_id) if event.WhichOneof("kind") == "item_done"]
            assert [(each.sequence, each.evaluations) for each in done] == [(1, 7)]
        else:
            direct.cancel(job.job_id, job.term)
        until(lambda: not direct.connect().unfinished_jobs)
        if call == "Start":
            again = direct.start(request(name, run=name))
            assert (again.job_id, again.state) == (answer.result().job_id, jobs_pb2.JOB_STATE_SUCCEEDED)


@pytest.mark.fault(15)
def test_two_seconds_there_and_back_are_no_fault(server: DaemonProcess) -> None:
    with through(server) as (between, client):
        between.delay_s = 1.0
        job = client.start(request("late", run="late", do="count", count=20, pause=0.2))
        assert finish(client, job.job_id).state == jobs_pb2.JOB_STATE_SUCCEEDED


@pytest.mark.fault(15)
def test_a_blackout_of_five_seconds_loses_nothing(server: DaemonProcess) -> None:
    with through(server) as (between, client):
        job = client.start(request("dark", run="dark", do="count", count=80, pause=0.1))
        timer = threading.Timer(5.0, between.release)
        events = client.watch(job.job_id)
        next(events)
        between.hold()
        timer.start()
        steps = [point.step for event in events for point in event.points.points]
        assert steps == list(range(80))


@pytest.mark.fault(15)
@pytest.mark.parametrize("within", ["call", "watch"])
def test_a_black_hole_is_told_within_a_bound(server: DaemonProcess, within: str) -> None:
    """Half-open: the connection stands, and nothing comes any more."""
    with through(server, call_s=3.0, retry_s=3.0) as (between, client):
        job = client.start(request(within, run=within, do="hold"))
        events = client.watch(job.job_id)
        next(events)
        between.forwarding = False
        begin = time.monotonic()
        with pytest.raises(DaemonError, match=between.address):
            client.get(job.job_id) if within == "call" else list(events)
        assert time.monotonic() - begin < 60
        with server.client() as direct:
            direct.cancel(job.job_id, job.term)


@pytest.mark.fault(17)
def test_a_message_that_is_too_large_is_refused_with_its_size(server: DaemonProcess) -> None:
    with server.client() as client:
        with pytest.raises(DaemonError, match=r"(?i)larger than max|too large|bytes"):
            client.start(request("large", run="large", text="x" * 5_000_000))
        assert not client.connect().unfinished_jobs
