"""The job protocol, with a real daemon and real gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import grpc
import pytest

from orchestrator.client import DaemonClient
from repsearch import __version__
from repsearch.errors import DaemonError
from repsearch.rpc.v1 import jobs_pb2, jobs_pb2_grpc
from repsearch.serving import PROTOCOL_VERSION
from repsearch.serving.table import QUEUE_LIMIT
from tests.serving_processes import DaemonProcess, daemon, finish, request, until


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving") / "store"


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[DaemonProcess]:
    with daemon(store, "--threads", "2") as process:
        yield process


@pytest.fixture
def client(server: DaemonProcess) -> Iterator[DaemonClient]:
    with server.client() as connected:
        yield connected


def held(client: DaemonClient, store: Path, run: str, *, term: int = 1) -> jobs_pb2.Job:
    """Start a job that runs until `release` is written, and wait until it does."""
    job = client.start(request("held", run=run, term=term, do="hold"))
    until((store / run / "started").exists)
    return job


def watch_raw(server: DaemonProcess, job_id: str, first: int) -> list[jobs_pb2.Event]:
    with grpc.insecure_channel(server.address) as channel:
        return list(jobs_pb2_grpc.SearcherStub(channel).Watch(jobs_pb2.WatchRequest(job_id=job_id, from_sequence=first)))


def test_info_says_who_answers(client: DaemonClient, server: DaemonProcess, store: Path) -> None:
    info = client.connect()
    assert (info.service, info.protocol_version, info.package_version) == ("searcher", PROTOCOL_VERSION, __version__)
    assert (info.device, info.threads, info.store_root) == ("cpu", 2, str(store))
    assert info.incarnation == server.ready["incarnation"] and info.pid == server.ready["pid"] == server.process.pid
    assert info.device_name and not info.draining
    assert {"torch", "numpy", "python"} <= set(info.libraries)


def test_job_runs_with_its_context_and_leaves_its_result(client: DaemonClient, store: Path) -> None:
    job = finish(client, client.start(request("result")).job_id)
    assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED
    assert (job.result.path, job.result.digest, job.dataset_digest) == ("out", "abc", f"cpu/2/{store}")
    assert client.get(job.job_id) == job


@pytest.mark.fault(13)
def test_start_is_idempotent_also_concurrently(client: DaemonClient) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(client.start, [request("same", do="pid")] * 16))
    assert len({job.job_id for job in jobs}) == 1
    finished = finish(client, jobs[0].job_id)
    assert client.start(request("same", do="pid")) == finished
    with pytest.raises(DaemonError, match="used for another request"):
        client.start(request("same", do="succeed"))


def test_events_have_no_gap_and_progress_comes_as_heartbeats(client: DaemonClient) -> None:
    job = client.start(request("count", do="count", count=20, pause=0.02))
    events = list(client.watch(job.job_id))
    kept = [event for event in events if event.sequence]
    assert [event.sequence for event in kept] == list(range(1, 24))
    assert [event.state.state for event in kept if event.WhichOneof("kind") == "state"] == [
        jobs_pb2.JOB_STATE_QUEUED,
        jobs_pb2.JOB_STATE_RUNNING,
        jobs_pb2.JOB_STATE_SUCCEEDED,
    ]
    points = [point for event in kept for point in event.points.points]
    assert [(point.key, point.step, point.value) for point in points] == [("curve", i, i / 2) for i in range(20)]
    counters = [event.heartbeat.counter for event in events if not event.sequence]
    assert counters == sorted(counters) and counters[-1] > counters[0]
    progress = client.get(job.job_id).progress
    assert (progress.done, progress.total, progress.unit, progress.text) == (20, 20, "steps", "counting")
    assert kept[-1].state.last_sequence == 23


@pytest.mark.parametrize("first", [0, 1, 2, 12, 22, 23, 24])
def test_watch_begins_at_any_sequence(client: DaemonClient, server: DaemonProcess, first: int) -> None:
    job = client.start(request("count-again", do="count", count=20))
    finish(client, job.job_id)
    assert [event.sequence for event in watch_raw(server, job.job_id, first)] == list(range(max(first, 1), 24))


def test_watch_beyond_the_last_event_is_refused(client: DaemonClient) -> None:
    job = client.start(request("count-again", do="count", count=20))
    finish(client, job.job_id)
    with pytest.raises(DaemonError, match="sequence 99 asked for"):
        list(client.watch(job.job_id, from_sequence=99))


def test_idle_stream_has_heartbeats(client: DaemonClient, store: Path) -> None:
    job = held(client, store, "idle")
    beats = []
    for event in client.watch(job.job_id):
        if event.WhichOneof("kind") == "heartbeat":
            beats.append(event.time_ms)
        if len(beats) == 3:
            break
    assert max(later - earlier for earlier, later in pairwise(beats)) < 3000
    (store / "idle" / "release").touch()
    assert finish(client, job.job_id).result.path == "held"


def test_cancel_waiting_and_running(client: DaemonClient, store: Path) -> None:
    running = held(client, store, "cancel")
    waiting = client.start(request("waiting", run="cancel"))
    assert client.cancel(waiting.job_id, 1).state == jobs_pb2.JOB_STATE_CANCELLED
    client.cancel(running.job_id, 1)
    job = finish(client, running.job_id)
    assert job.state == jobs_pb2.JOB_STATE_CANCELLED and not job.HasField("failure")
    assert client.cancel(running.job_id, 1) == job


@pytest.mark.fault(14)
def test_higher_term_cancels_older_jobs_and_lower_is_refused(client: DaemonClient, store: Path) -> None:
    other = client.start(request("other", run="other-run", do="succeed"))
    running = held(client, store, "fenced")
    waiting = client.start(request("waiting", run="fenced"))
    newer = client.start(request("held", run="fenced", term=2, do="succeed"))
    assert finish(client, running.job_id).state == jobs_pb2.JOB_STATE_CANCELLED
    assert finish(client, waiting.job_id).state == jobs_pb2.JOB_STATE_CANCELLED
    assert finish(client, newer.job_id).state == finish(client, other.job_id).state == jobs_pb2.JOB_STATE_SUCCEEDED
    for stale in (lambda: client.start(request("late", run="fenced")), lambda: client.cancel(newer.job_id, 1)):
        with pytest.raises(DaemonError, match="another orchestrator has taken over"):
            stale()


def test_queue_has_a_limit(client: DaemonClient, store: Path) -> None:
    running = held(client, store, "queue")
    waiting = [client.start(request(f"w{index}", run="queue")) for index in range(QUEUE_LIMIT)]
    with pytest.raises(DaemonError, match=f"{QUEUE_LIMIT} jobs are waiting already"):
        client.start(request("one too many", run="queue"))
    assert client.start(request("w0", run="queue")).job_id == waiting[0].job_id
    (store / "queue" / "release").touch()
    assert [finish(client, job.job_id).state for job in (running, *waiting)] == [jobs_pb2.JOB_STATE_SUCCEEDED] * (QUEUE_LIMIT + 1)


@pytest.mark.fault(10)
def test_our_errors_come_without_traceback_and_others_with(client: DaemonClient) -> None:
    ours = finish(client, client.start(request("refuse", do="refuse")).job_id)
    assert ours.state == jobs_pb2.JOB_STATE_FAILED
    assert (ours.failure.kind, ours.failure.traceback) == ("NumericalError", "")
    assert ours.failure.message == "image 3: fitness is nan; lower search.noise"
    before = finish(client, client.start(request("before", do="pid")).job_id).result.path
    other = finish(client, client.start(request("bug", do="bug")).job_id)
    assert other.failure.kind == "ZeroDivisionError" and "serving_jobs.py" in other.failure.traceback
    after = finish(client, client.start(request("after", do="pid")).job_id).result.path
    assert before and after and before != after, "a process is not used again after an unknown failure"


def test_points_of_a_job_are_bounded(client: DaemonClient) -> None:
    job = finish(client, client.start(request("flood", do="flood")).job_id)
    assert job.failure.kind == "JobError" and "more than 100000 points" in job.failure.message


@pytest.mark.fault(11)
def test_crash_of_the_compute_process_fails_the_job_alone(client: DaemonClient) -> None:
    crashed = client.start(request("crash", do="crash"))
    following = client.start(request("following", do="succeed"))
    job = finish(client, crashed.job_id)
    assert job.state == jobs_pb2.JOB_STATE_FAILED and "SIGKILL" in job.failure.message
    assert finish(client, following.job_id).state == jobs_pb2.JOB_STATE_SUCCEEDED


def test_unknown_job_is_refused(client: DaemonClient) -> None:
    for call in (lambda: client.get("nothing"), lambda: client.cancel("nothing", 1), lambda: list(client.watch("nothing"))):
        with pytest.raises(DaemonError, match="no job 'nothing'"):
            call()


def bad(**fields: object) -> jobs_pb2.StartRequest:
    message = request("bad")
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def learn() -> jobs_pb2.StartRequest:
    message = request("bad")
    message.learn.output_path = "out"
    return message


@pytest.mark.fault(17)
@pytest.mark.parametrize(
    ("message", "words"),
    [
        (bad(request_id=""), "request_id is empty"),
        (bad(run_id=""), "run_id is empty"),
        (learn(), "a searcher does not run learn"),
        (jobs_pb2.StartRequest(request_id="x", run_id="y", run_path="z"), "without a spec"),
    ],
)
def test_bad_requests_are_refused(server: DaemonProcess, message: jobs_pb2.StartRequest, words: str) -> None:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError, match=words) as error:
        jobs_pb2_grpc.SearcherStub(channel).Start(message)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def outside(store: Path) -> dict[str, str]:
    (store / "link").unlink(missing_ok=True)
    (store / "link").symlink_to(store.parent)
    return {
        "up": "../elsewhere",
        "up and down": "run/../../elsewhere",
        "absolute": "/etc",
        "link": "link/elsewhere",
        "scheme": "s3://bucket/run",
        "other scheme": "memory:run",
        "sibling with the same beginning": f"{store}-2/run",
    }


def test_paths_outside_the_root_are_refused(server: DaemonProcess, store: Path) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = jobs_pb2_grpc.SearcherStub(channel)
        for path in outside(store).values():
            with pytest.raises(grpc.RpcError) as error:
                stub.Start(request("out", path=path))
            assert error.value.code() == grpc.StatusCode.PERMISSION_DENIED
            assert path in error.value.details() and str(store) in error.value.details()
        for path in ("", "a\0b"):
            with pytest.raises(grpc.RpcError) as error:
                stub.Start(request("out", path=path))
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_paths_of_a_spec_outside_the_run_are_refused(client: DaemonClient, store: Path) -> None:
    (store / "run").mkdir(exist_ok=True)
    for output, network in (("../other", "n"), ("/etc", "n"), ("o", "../other"), ("s3://b/o", "n")):
        message = request("out", path=str(store / "run"))
        message.search.output_path, message.search.network.path = output, network
        with pytest.raises(DaemonError, match=r"outside|relative to the run's folder|not a local path"):
            client.start(message)


def stream(client: DaemonClient, run: str, *, term: int = 1) -> jobs_pb2.Job:
    """Start a stream job."""
    message = request("stream", run=run, term=term, do="stream")
    message.ClearField("check")
    message.stream_search.SetInParent()
    return client.start(message)


def item(round: int, path: str = "out") -> jobs_pb2.Item:
    return jobs_pb2.Item(search=jobs_pb2.SearchSpec(round=round, output_path=path, network=jobs_pb2.Reference(path="in")))


@pytest.mark.fault(13)
def test_items_are_taken_once_and_in_order(client: DaemonClient) -> None:
    job = stream(client, "fed")
    for sequence, round in ((1, 7), (1, 7), (2, 5), (1, 9), (3, 6)):
        client.push(job.job_id, 1, sequence, item(round))
    with pytest.raises(DaemonError, match="item 6 was pushed, the last one was 3"):
        client.push(job.job_id, 1, 6, item(0))
    client.push(job.job_id, 1, 4, jobs_pb2.Item(end=jobs_pb2.End()))
    events = list(client.watch(job.job_id))
    done = [(event.item_done.sequence, event.item_done.evaluations) for event in events if event.WhichOneof("kind") == "item_done"]
    assert done == [(1, 7), (2, 5), (3, 6)]
    assert events[-1].state.result.path == "ended"
    again = [event.item_done.evaluations for event in client.watch(job.job_id) if event.WhichOneof("kind") == "item_done"]
    assert again == [7, 5, 6], "a watch that begins anew hears of every item"


def test_items_that_a_job_must_not_have_are_refused(client: DaemonClient) -> None:
    job = stream(client, "refused")
    with pytest.raises(DaemonError, match="must be relative to the run's folder"):
        client.push(job.job_id, 1, 1, item(0, "/etc/targets"))
    with pytest.raises(DaemonError, match="a searcher takes no item learn"):
        client.push(job.job_id, 1, 1, jobs_pb2.Item(learn=jobs_pb2.LearnSpec()))
    with pytest.raises(DaemonError, match="takes no items"):
        client.push(client.start(request("plain", run="refused")).job_id, 1, 1, item(0))
    client.cancel(job.job_id, 1)
    assert finish(client, job.job_id).state == jobs_pb2.JOB_STATE_CANCELLED


@pytest.mark.fault(14)
def test_a_newer_term_ends_the_stream_of_an_older_one(client: DaemonClient) -> None:
    job = stream(client, "stream-fenced")
    newer = stream(client, "stream-fenced", term=2)
    assert finish(client, job.job_id).state == jobs_pb2.JOB_STATE_CANCELLED
    with pytest.raises(DaemonError, match="is at term 2, the call is of term 1"):
        client.push(job.job_id, 1, 1, item(0))
    client.push(newer.job_id, 2, 1, jobs_pb2.Item(end=jobs_pb2.End()))
    assert finish(client, newer.job_id).state == jobs_pb2.JOB_STATE_SUCCEEDED
