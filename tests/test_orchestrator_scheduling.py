"""Tasks go to whichever daemon is free; lost daemons' tasks go to others; failures are counted, or final."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from orchestrator import scheduling
from orchestrator.attempts import TakenOverError, Task
from orchestrator.oversight import Bounds, Oversight, Wait
from orchestrator.roster import GoneError, Roster, StartedAnewError
from orchestrator.scheduling import MAX_FAILURES, MAX_LOSSES, Hooks, Outcome, run_tasks
from repsearch.errors import DaemonError, JobError, NumericalError, StoppedError
from repsearch.rpc.v1 import jobs_pb2
from tests.serving_processes import until

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


def test_the_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "TICK_S", 20.0)
    begun = time.monotonic()
    assert len(run_tasks(tasks(2), [FakeDaemon("a", succeed)], Hooks(), service="learner")) == 2
    assert time.monotonic() - begun < 10, "it slept through a tick once all was done"


def test_progress_and_points_reach_the_caller() -> None:
    progress, points = list[float](), list[tuple[str, int, float]]()
    hooks = Hooks(progress=lambda done, text: progress.append(done), points=points.extend)
    run_tasks(tasks(2), [FakeDaemon("a", succeed)], hooks, service="searcher")
    assert progress == [1, 2, 3, 4]
    assert points == [("loss", 1, 0.5)] * 2


@pytest.mark.fault(1)
def test_a_lost_daemons_task_goes_to_another_as_a_new_attempt() -> None:
    lost, other = FakeDaemon("a", vanish), FakeDaemon("b", succeed)
    messages: list[str] = []
    outcomes = run_tasks(tasks(3), [lost, other], Hooks(message=messages.append), service="searcher")
    assert len(lost.started) == 1
    key = int(lost.started[0].partition("/")[0])
    assert outcomes[key].attempt == 2
    assert f"{key}/2" in other.started
    assert "connection lost" in messages[0]


@pytest.mark.fault(2)
@pytest.mark.parametrize("end", [vanish, fail("JobError")], ids=["the daemon dies", "its process dies"])
def test_what_was_committed_before_its_answer_was_lost_counts(end: Behaviour) -> None:
    dying, other = FakeDaemon("a", end), FakeDaemon("b", succeed)
    asked, took, incidents = list[int](), list[str](), list[tuple[str, str]]()

    def found(attempt: int) -> jobs_pb2.Reference:
        asked.append(attempt)
        return jobs_pb2.Reference(path="committed", digest="d")

    (task,) = tasks(1)
    oversight = Oversight(tell=lambda event, text: incidents.append((event, text)))
    hooks = Hooks(took=lambda task, daemon, seconds: took.append(task.what))
    outcomes = run_tasks([replace(task, found=found)], [dying, other], hooks, service="searcher", oversight=oversight)
    assert outcomes[0].attempt == 1 and outcomes[0].job.result.path == "committed"
    assert (asked, dying.started, other.started) == ([1], ["0/1"], [])
    assert took == [], "a death says nothing of the pace"
    assert incidents == [("found", "shard 0, on a: it was committed before its answer was lost, and is used")]


@pytest.mark.fault(12)
def test_no_daemon_left_names_the_work_and_the_reasons() -> None:
    daemons = [FakeDaemon("a", vanish), FakeDaemon("b", vanish)]
    with pytest.raises(JobError, match=r"no searcher daemon is left for shard(.|\n)*connection lost"):
        run_tasks(tasks(3), daemons, Hooks(), service="searcher")


@pytest.mark.fault(10)
def test_a_crashing_job_is_tried_a_limited_number_of_times() -> None:
    daemon = FakeDaemon("a", fail("Crash"))
    with pytest.raises(JobError, match="shard 0, on a: Crash: it broke"):
        run_tasks(tasks(1), [daemon], Hooks(), service="searcher")
    assert daemon.started == [f"0/{attempt}" for attempt in range(1, MAX_FAILURES + 1)]


@pytest.mark.fault(10)
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


class SteeredDaemon(FakeDaemon):
    """A daemon whose jobs send the events in `events` and end when they are cancelled, or with the last of those."""

    def __init__(self, address: str) -> None:
        super().__init__(address, succeed)
        self.events: queue.SimpleQueue[jobs_pb2.Event] = queue.SimpleQueue()

    def watch(self, job_id: str) -> Iterator[jobs_pb2.Event]:
        yield jobs_pb2.Event(sequence=1, state=jobs_pb2.Job(job_id=job_id, state=jobs_pb2.JOB_STATE_RUNNING))
        while True:
            event = self.events.get(timeout=20)
            yield event
            if event.WhichOneof("kind") == "state":
                return

    def cancel(self, job_id: str, term: int) -> jobs_pb2.Job:
        self.events.put(jobs_pb2.Event(sequence=2, state=jobs_pb2.Job(job_id=job_id, state=jobs_pb2.JOB_STATE_CANCELLED)))
        return super().cancel(job_id, term)


def beat(daemon: SteeredDaemon, counter: int, stop: threading.Event) -> None:
    """Send heartbeats with the same counter until `stop` is set."""
    while not stop.wait(0.05):
        daemon.events.put(jobs_pb2.Event(heartbeat=jobs_pb2.Progress(counter=counter, done=0, total=2)))


def test_a_job_that_is_alive_without_progress_is_reported_then_cancelled_and_done_elsewhere() -> None:
    stuck, other, stop = SteeredDaemon("stuck"), FakeDaemon("other", succeed), threading.Event()
    threading.Thread(target=beat, args=[stuck, 7, stop], daemon=True).start()
    incidents, waits = list[tuple[str, str]](), list[Wait]()
    oversight = Oversight(bounds=Bounds(stall_s=1.0), tell=lambda event, text: incidents.append((event, text)), waits=waits.extend)
    try:
        outcomes = run_tasks(tasks(2), [stuck, other], Hooks(), service="searcher", oversight=oversight)
    finally:
        stop.set()
    assert stuck.cancelled == ["0/1"]
    assert "0/2" in other.started and outcomes[0].attempt == 2
    assert [event for event, _ in incidents] == ["still", "stalled"]
    assert "shard 0, on stuck: alive, but no progress" in incidents[0][1]
    assert any(wait.what == "shard 0, on stuck" and "no progress for" in wait.note and wait.until is not None for wait in waits)


def test_a_job_that_waits_for_another_one_is_not_cancelled() -> None:
    daemon, stop = SteeredDaemon("a"), threading.Event()

    def watch(job_id: str) -> Iterator[jobs_pb2.Event]:
        yield jobs_pb2.Event(sequence=1, state=jobs_pb2.Job(job_id=job_id, state=jobs_pb2.JOB_STATE_QUEUED))
        for _ in range(10):
            stop.wait(0.1)
            yield jobs_pb2.Event(heartbeat=jobs_pb2.Progress())
        yield jobs_pb2.Event(sequence=2, state=jobs_pb2.Job(job_id=job_id, state=jobs_pb2.JOB_STATE_RUNNING))
        yield jobs_pb2.Event(sequence=3, state=jobs_pb2.Job(job_id=job_id, state=jobs_pb2.JOB_STATE_SUCCEEDED))

    daemon.watch = watch  # type: ignore[method-assign]
    waits = list[Wait]()
    run_tasks(tasks(1), [daemon], Hooks(), service="searcher", oversight=Oversight(bounds=Bounds(stall_s=0.4), waits=waits.extend))
    assert daemon.cancelled == []
    assert any("waits for another job" in wait.note and wait.until is None for wait in waits)


def test_a_job_that_never_goes_on_ends_the_run_clearly() -> None:
    stuck, stop = SteeredDaemon("stuck"), threading.Event()
    threading.Thread(target=beat, args=[stuck, 0, stop], daemon=True).start()
    try:
        with pytest.raises(JobError, match=r"shard 0, on stuck: no progress for 0.3 s"):
            run_tasks(tasks(1), [stuck], Hooks(), service="searcher", oversight=Oversight(bounds=Bounds(stall_s=0.3)))
    finally:
        stop.set()
    assert len(stuck.cancelled) == MAX_FAILURES


def test_the_task_that_is_furthest_behind_gets_a_second_attempt_and_the_first_result_counts() -> None:
    slow, quick = SteeredDaemon("slow"), FakeDaemon("quick", succeed)
    slow.events.put(jobs_pb2.Event(heartbeat=jobs_pb2.Progress(counter=1, done=1, total=100)))
    heard = list[int]()
    incidents = list[str]()
    oversight = Oversight(bounds=Bounds(hedge=True), tell=lambda event, text: incidents.append(event))
    hooks = Hooks(heard=lambda key, progress: heard.append(key))
    outcomes = run_tasks(tasks(3), [slow, quick], hooks, service="searcher", oversight=oversight)
    assert outcomes[0].attempt == 2 and outcomes[0].job.job_id == "0/2"
    assert quick.started == ["1/1", "2/1", "0/2"]
    assert incidents == ["hedged"]
    deadline = threading.Event()
    while not slow.cancelled:
        assert not deadline.wait(0.01)
    assert slow.cancelled == ["0/1"]


def test_no_second_attempt_where_it_is_not_asked_for() -> None:
    slow, quick = SteeredDaemon("slow"), FakeDaemon("quick", succeed)
    done = jobs_pb2.Event(sequence=9, state=jobs_pb2.Job(job_id="0/1", state=jobs_pb2.JOB_STATE_SUCCEEDED))
    threading.Timer(1.0, slow.events.put, [done]).start()
    run_tasks(tasks(3), [slow, quick], Hooks(), service="searcher")
    assert quick.started == ["1/1", "2/1"]


def test_a_daemon_that_is_back_is_used_again() -> None:
    answers = iter([vanish, *[succeed] * 9])
    daemon = FakeDaemon("a", lambda request: next(answers)(request))
    tries = iter([DaemonError("still away"), None])

    def rejoin(back: FakeDaemon) -> None:
        assert back is daemon
        if (error := next(tries)) is not None:
            raise error

    incidents = list[tuple[str, str]]()
    roster = Roster(rejoin, report=lambda event, text: incidents.append((event, text)))
    waits = list[Wait]()
    oversight = Oversight(bounds=Bounds(wait_s=30), roster=roster, waits=waits.extend)
    outcomes = run_tasks(tasks(2), [daemon], Hooks(), service="searcher", oversight=oversight)
    assert daemon.started == ["0/1", "0/2", "1/1"] and sorted(outcomes) == [0, 1]
    assert [event for event, _ in incidents] == ["daemon_lost", "daemon_back"]
    named = [wait for wait in waits if wait.what == "searcher at a to come back"]
    assert named and named[-1].until is not None and "still away" in named[-1].note


def test_waiting_for_a_daemon_is_bounded() -> None:
    def rejoin(daemon: FakeDaemon) -> None:
        raise DaemonError("a: still away")

    incidents, roster = list[tuple[str, str]](), Roster(rejoin)
    oversight = Oversight(bounds=Bounds(wait_s=0.5), roster=roster, tell=lambda event, text: incidents.append((event, text)))
    with pytest.raises(JobError, match=r"no searcher daemon is left for shard 0(.|\n)*still away"):
        run_tasks(tasks(1), [FakeDaemon("a", vanish)], Hooks(), service="searcher", oversight=oversight)
    roster.close()
    assert incidents == [("waiting", "no searcher daemon is left for shard 0; waiting 0.5 s for one to return")]


def test_nobody_waits_for_a_process_that_has_ended() -> None:
    def rejoin(daemon: FakeDaemon) -> None:
        raise GoneError("a: its process has ended")

    oversight = Oversight(bounds=Bounds(wait_s=1000), roster=Roster(rejoin))
    with pytest.raises(JobError, match="its process has ended"):
        run_tasks(tasks(1), [FakeDaemon("a", vanish)], Hooks(), service="searcher", oversight=oversight)


def test_a_process_that_was_started_anew_is_told_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.roster.PROBE_S", 0.01)
    lost = FakeDaemon("a", vanish)
    answers = [StartedAnewError("a: process 2 was started in its place"), DaemonError("a: unavailable"), DaemonError("a: unavailable")]
    notes, incidents = list[str](), list[tuple[str, str]]()

    def rejoin(daemon: FakeDaemon) -> None:
        notes.extend(one.why for one in roster.lost([daemon]))
        if answers:
            raise answers.pop(0)

    roster = Roster(rejoin, report=lambda event, text: incidents.append((event, text)))
    roster.lose(lost, "a: silent")
    until(lambda: not roster.is_lost(lost))
    assert notes == ["a: silent", "a: process 2 was started in its place", *["a: process 2 was started in its place; a: unavailable"] * 2]
    assert [event for event, _ in incidents] == ["daemon_lost", "daemon_restarted", "daemon_back"]


def test_another_orchestrator_ends_this_one_at_once() -> None:
    def fenced(request: jobs_pb2.StartRequest) -> jobs_pb2.Job:
        raise TakenOverError("searcher at a: another orchestrator has taken over")

    roster = Roster(lambda daemon: None)
    with pytest.raises(JobError, match="has taken over"):
        run_tasks(
            tasks(1), [FakeDaemon("a", fenced)], Hooks(), service="searcher", oversight=Oversight(bounds=Bounds(wait_s=1000), roster=roster)
        )


def test_a_task_that_ends_every_daemon_ends_the_run() -> None:
    oversight = Oversight(bounds=Bounds(wait_s=1000), roster=Roster(lambda daemon: None))
    with pytest.raises(JobError, match=f"{MAX_LOSSES} daemons were lost over it"):
        run_tasks(tasks(1), [FakeDaemon("a", vanish)], Hooks(), service="searcher", oversight=oversight)


def test_a_paused_run_begins_no_job_and_a_stopped_one_ends_when_the_jobs_have() -> None:
    wanted, looks = "pause", 0

    def asked() -> str:
        nonlocal looks
        looks += 1
        return "" if looks == 1 else wanted

    daemon = FakeDaemon("a", succeed)
    thread_failed: list[BaseException] = []

    def run() -> None:
        try:
            run_tasks(tasks(3), [daemon], Hooks(), service="searcher", oversight=Oversight(wanted=asked))
        except StoppedError as error:
            thread_failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    until(lambda: looks > 8)
    # The first job began before; it ended, and no other followed.
    assert daemon.started == ["0/1"]
    wanted = "stop"
    thread.join(10)
    assert len(thread_failed) == 1 and daemon.started == ["0/1"] and daemon.cancelled == []


def test_a_job_that_keeps_what_it_has_is_cancelled_when_the_run_pauses_and_goes_on_after() -> None:
    daemon, wanted = SteeredDaemon("a"), ""
    task = replace(tasks(1)[0], keeps=True)
    outcomes: dict[int, Outcome] = {}

    def run() -> None:
        outcomes.update(run_tasks([task], [daemon], Hooks(), service="learner", oversight=Oversight(wanted=lambda: wanted)))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    until(lambda: daemon.started == ["0/1"])
    wanted = "pause"
    until(lambda: daemon.cancelled == ["0/1"])
    wanted = ""
    until(lambda: daemon.started == ["0/1", "0/2"])
    daemon.events.put(jobs_pb2.Event(sequence=3, state=jobs_pb2.Job(job_id="0/2", state=jobs_pb2.JOB_STATE_SUCCEEDED)))
    thread.join(10)
    assert outcomes[0].attempt == 2
