"""RPC handlers take anything: each call is answered, or refused with the reason; nothing crashes, hangs or grows.

`make fuzz` goes on where this stops, guided by coverage.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from typing import Any

import grpc
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repsearch.rpc.v1 import jobs_pb2, jobs_pb2_grpc
from repsearch.serving.servicer import HEADROOM, STREAMS
from tests.rpc_fuzzing import METHODS, REFUSED, REQUESTS, Handlers, built, messages
from tests.serving_processes import DaemonProcess, daemon, request
from tests.test_serving_daemon import SERVING, health

HANDLERS = {service: Handlers(service) for service in ("searcher", "learner")}


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), service=st.sampled_from(list(HANDLERS)))
def test_handlers_answer_any_message(method: str, service: str, data: st.DataObject) -> None:
    handlers = HANDLERS[service]
    job_ids = st.builds(handlers.job) if service == "searcher" else st.just("none")
    fields = data.draw(messages(REQUESTS[method].DESCRIPTOR, job_ids))
    handlers.send(method, built(REQUESTS[method], fields))


@settings(max_examples=150, deadline=None)
@given(method=st.sampled_from(METHODS), body=st.binary(max_size=300))
def test_handlers_answer_any_bytes(method: str, body: bytes) -> None:
    HANDLERS["searcher"].call(method, body)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with daemon(tmp_path_factory.mktemp("fuzz") / "store") as process:
        yield process


def sizes(server: DaemonProcess) -> tuple[int, int]:
    """Threads and megabytes of a daemon process."""
    process = psutil.Process(server.process.pid)
    return process.num_threads(), process.memory_info().rss // 2**20


def send_anything(server: DaemonProcess, seed: int, calls: int) -> None:
    """Send as many requests of all kinds, each other bytes, and see each answered in time."""
    draw = random.Random(seed)
    with grpc.insecure_channel(server.address) as channel:
        for _ in range(calls):
            method = draw.choice(METHODS)
            body = noisy(draw, REQUESTS[method]().SerializeToString() or request(str(draw.random())).SerializeToString())
            kind: Any = channel.unary_stream if method == "Watch" else channel.unary_unary
            try:
                answer = kind(f"/repsearch.rpc.v1.Searcher/{method}")(body, timeout=30)
                for _ in answer if method == "Watch" else ():
                    answer.cancel()
            except grpc.RpcError as error:
                assert error.code() in {*REFUSED, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED}, (method, body, error)
                assert error.code() != grpc.StatusCode.INTERNAL or "deserializing" in error.details(), (method, body, error)


def noisy(draw: random.Random, body: bytes) -> bytes:
    """Return a message with some bytes changed, lost or added."""
    changed = bytearray(body)
    for _ in range(draw.randrange(4)):
        at = draw.randrange(len(changed) + 1)
        changed[at : at + draw.randrange(2)] = draw.randbytes(draw.randrange(3))
    return bytes(changed)


def test_a_daemon_stays_as_it_is_whatever_it_is_sent(server: DaemonProcess) -> None:
    """Bytes for messages, then for connections: it serves on, with no more threads, jobs and memory than before."""
    send_anything(server, seed=0, calls=300)
    threads, megabytes = sizes(server)
    send_anything(server, seed=1, calls=600)
    speak_nonsense(server, seed=2)
    after_threads, after_megabytes = sizes(server)
    assert after_threads <= max(threads, STREAMS + HEADROOM + 24)
    assert after_megabytes <= megabytes + 50
    with grpc.insecure_channel(server.address) as channel:
        assert health(channel, timeout=5) == SERVING
        assert len(jobs_pb2_grpc.SearcherStub(channel).GetInfo(jobs_pb2.GetInfoRequest()).unfinished_jobs) <= 17
    assert "Traceback" not in server.log()
    assert len(server.log()) < 200_000


def speak_nonsense(server: DaemonProcess, seed: int) -> None:
    """Open connections that speak no HTTP/2, or begin to and go on otherwise, or say nothing; health is answered beside them."""
    draw, (host, _, port) = random.Random(seed), server.address.rpartition(":")
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    opened = []
    for start in (b"", preface, preface + b"\0\0\0\4\0\0\0\0\0", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"):
        for _ in range(6):
            connection = socket.create_connection((host, int(port)), timeout=10)
            connection.sendall(start + draw.randbytes(draw.randrange(200)))
            opened.append(connection)
    begin = time.monotonic()
    with grpc.insecure_channel(server.address) as channel:
        assert health(channel, timeout=10) == SERVING
    assert time.monotonic() - begin < 10
    for connection in opened:
        connection.close()
