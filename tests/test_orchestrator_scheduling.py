"""Tasks go to whichever daemon is free; lost daemons' tasks go to others; failures are counted, or final."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import pytest

from orchestrator.scheduling import MAX_FAILURES, Hooks, Task, run_tasks
from repsearch.errors import DaemonError, JobError, NumericalError
from repsearch.rpc.v1 import jobs_pb2

Behaviour = Callable[[jobs_pb2.StartRequest], jobs_pb2.Job]


class FakeDaemon:
    """A daemon whose jobs end as `behaviour` says; it may raise `DaemonError`, as a client does whose daemon is gone."""

    def __init__(self, address: str, behaviour: Behaviour) -> None:
        self.address, self.started, self.cancelled = address, list[str](), list[str]()
        self._behaviour, self._requests = behaviour, dict[str, jobs_pb2.StartRequest]()

    def start(self, request: jobs_pb2.StartRequest) -> jobs_pb2.Job:
        self.started.append(request.request_id)
        self._requests[request.request_id] = request
        return jobs_pb2.Job(job_id=request.request_id, state=jobs_pb2.JOB_STATE_RUNNING)

    def watch(self, job_id: str) -> Iterator[jobs_pb2.Event]:
        points = [jobs_pb2.Point(key="loss", step=1, value=0.5)]
        yield jobs_pb2.Event(sequence=1, points=jobs_pb2.Points(points=points))
        yield jobs_pb2.Event(heartbeat=jobs_pb2.Progress(done=1, total=2))
        yield jobs_pb2.Event(sequence=2, state=self._behaviour(self._requests[job_id]))

    def cancel(self, job_id: str, term: int) -> jobs_pb2.Job:
        self.cancelled.append(job_id)
        return jobs_pb2.Job(job_id=job_id)


def succeed(request: jobs_pb2.StartRequest) -> jobs_pb2.Job:
    return jobs_pb2.Job(job_id=request.request_id, state=jobs_pb2.JOB_STATE_SUCCEEDED)


def vanish(request: jobs_pb2.StartRequest) -> jobs_pb2.Job:
    raise DaemonError("searcher at a: connection lost")


def fail(kind: str) -> Behaviour:
    def behaviour(request: jobs_pb2.StartRequest) -> jobs_pb2.Job:
        failure = jobs_pb2.Failure(kind=kind, message="it broke")
        return jobs_pb2.Job(job_id=request.request_id, state=jobs_pb2.JOB_STATE_FAILED, failure=failure)

    return behaviour


def tasks(count: int) -> list[Task]:
    def request(key: int) -> Callable[[int, object], jobs_pb2.StartRequest]:
        return lambda attempt, daemon: jobs_pb2.StartRequest(request_id=f"{key}/{attempt}", term=1)

    return [Task(key=key, what=f"shard {key}", weight=2, attempt=1, request=request(key)) for key in range(count)]


def test_tasks_are_spread_over_free_daemons() -> None:
    barrier = threading.Barrier(2, timeout=10)

    def together(request: jobs_pb2.StartRequest) -> jobs_pb2.Job:
        barrier.wait()
        return succeed(request)

    daemons = [FakeDaemon("a", together), FakeDaemon("b", together)]
    outcomes = run_tasks(tasks(6), daemons, Hooks(), service="searcher")
    assert sorted(outcomes) == list(range(6))
    # The barrier lets two jobs through at a time, so both daemons work all the time.
    assert [len(daemon.started) for daemon in daemons] == [3, 3]


def test_progress_and_points_reach_the_caller() -> None:
    progress, points = list[float](), list[tuple[str, int, float]]()
    hooks = Hooks(progress=lambda done, text: progress.append(done), points=points.extend)
    run_tasks(tasks(2), [FakeDaemon("a", succeed)], hooks, service="searcher")
    assert progress == [1, 2, 3, 4]
    assert points == [("loss", 1, 0.5)] * 2


def test_a_lost_daemons_task_goes_to_another_as_a_new_attempt() -> None:
    lost, other = FakeDaemon("a", vanish), FakeDaemon("b", succeed)
    messages: list[str] = []
    outcomes = run_tasks(tasks(3), [lost, other], Hooks(message=messages.append), service="searcher")
    assert len(lost.started) == 1
    key = int(lost.started[0].partition("/")[0])
    assert outcomes[key].attempt == 2
    assert f"{key}/2" in other.started
    assert "connection lost" in messages[0]


def test_no_daemon_left_names_the_work_and_the_reasons() -> None:
    daemons = [FakeDaemon("a", vanish), FakeDaemon("b", vanish)]
    with pytest.raises(JobError, match=r"no searcher daemon is left for shard(.|\n)*connection lost"):
        run_tasks(tasks(3), daemons, Hooks(), service="searcher")


def test_a_crashing_job_is_tried_a_limited_number_of_times() -> None:
    daemon = FakeDaemon("a", fail("Crash"))
    with pytest.raises(JobError, match="shard 0, on a: Crash: it broke"):
        run_tasks(tasks(1), [daemon], Hooks(), service="searcher")
    assert daemon.started == [f"0/{attempt}" for attempt in range(1, MAX_FAILURES + 1)]


def test_a_lasting_fault_is_not_tried_again() -> None:
    daemon = FakeDaemon("a", fail("NumericalError"))
    with pytest.raises(NumericalError, match="shard 0, on a: it broke"):
        run_tasks(tasks(1), [daemon], Hooks(), service="searcher")
    assert daemon.started == ["0/1"]


def test_the_jobs_that_run_are_cancelled_when_one_ends_the_run() -> None:
    started, release = queue.SimpleQueue[str](), threading.Event()

    def slow(request: jobs_pb2.StartRequest) -> jobs_pb2.Job:
        started.put(request.request_id)
        release.wait(10)
        return succeed(request)

    def broken(request: jobs_pb2.StartRequest) -> jobs_pb2.Job:
        started.get(timeout=10)
        return fail("ConfigError")(request)

    daemons = [FakeDaemon("a", slow), FakeDaemon("b", broken)]
    with pytest.raises(Exception, match="it broke"):
        run_tasks(tasks(2), daemons, Hooks(), service="searcher")
    release.set()
    assert daemons[0].cancelled == ["0/1"]
