"""Jobs on daemons: each task goes to whichever daemon is free; a task whose daemon is lost goes to another.

One thread per running job reads the job's events into a queue; the calling thread alone takes them out, assigns tasks and decides.
A lost daemon stays out for the rest of the call. A failed job is tried again, on any daemon, up to `MAX_FAILURES` times, unless its
error says that a second try fails the same way (a bad configuration, a number that is not finite).
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from orchestrator import interrupts
from repsearch.errors import KINDS, DaemonError, JobError, RepSearchError, from_kind
from repsearch.failpoints import reach
from repsearch.rpc.v1 import jobs_pb2

MAX_FAILURES = 3
"""Failed jobs of one task after which the run stops."""
Points = list[tuple[str, int, float]]


class Daemon(Protocol):
    """What scheduling needs of a daemon's client; calls raise `DaemonError` when the daemon is gone or refuses."""

    @property
    def address(self) -> str: ...

    def start(self, request: jobs_pb2.StartRequest) -> jobs_pb2.Job:
        """Start a job, or return the one that the request started before."""
        ...

    def watch(self, job_id: str) -> Iterator[jobs_pb2.Event]:
        """Yield the job's events up to its last."""
        ...

    def cancel(self, job_id: str, term: int) -> jobs_pb2.Job:
        """Cancel the job."""
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """A job to be done.

    key: number among the tasks of one call.
    what: name in messages, such as "shard 3 of round 1".
    weight: share of the progress, such as examples.
    attempt: number of the attempt; the next try has the next one.
    request: the job's request for an attempt on a daemon.
    """

    key: int
    what: str
    weight: float
    attempt: int
    request: Callable[[int, Daemon], jobs_pb2.StartRequest]


@dataclass(frozen=True)
class Outcome:
    """A task that succeeded: which attempt, and the job as the daemon reported it."""

    attempt: int
    job: jobs_pb2.Job


@dataclass(frozen=True)
class Hooks:
    """What the caller does with news: progress (weight done, text), points of a curve, a line for people. Called in its own thread.

    heard: the newest progress of a task, by its key, ahead of `progress`; None when the task begins anew.
    """

    progress: Callable[[float, str], None] = lambda done, text: None
    heard: Callable[[int, jobs_pb2.Progress | None], None] = lambda key, progress: None
    points: Callable[[Points], None] = lambda points: None
    message: Callable[[str], None] = lambda text: None


def run_tasks(tasks: Sequence[Task], daemons: Sequence[Daemon], hooks: Hooks, *, service: str) -> dict[int, Outcome]:
    """Return the outcome of every task, by key.

    Raises `JobError` when no daemon is left or a task failed too often, and a task's own error where trying again cannot help.
    Whatever ends the call early, Ctrl-C included, cancels the jobs that run.
    """
    schedule = _Schedule(tasks, daemons, hooks, service)
    try:
        return schedule.run()
    except BaseException:
        schedule.cancel()
        raise


@dataclass
class _Job:
    """A running job: the daemon, the task, the job's id once it is known, and the share of it that is done."""

    daemon: Daemon
    task: Task
    request: jobs_pb2.StartRequest
    job_id: str = ""
    done: float = 0.0


@dataclass
class _News:
    """What a thread read: an event of its job, or the job's end (`final` or `error`)."""

    job: _Job
    event: jobs_pb2.Event | None = None
    final: jobs_pb2.Job | None = None
    error: BaseException | None = None


@dataclass
class _Schedule:
    """State of one `run_tasks` call."""

    tasks: Sequence[Task]
    daemons: Sequence[Daemon]
    hooks: Hooks
    service: str
    pending: deque[Task] = field(default_factory=deque)
    free: deque[Daemon] = field(default_factory=deque)
    running: list[_Job] = field(default_factory=list)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    news: queue.SimpleQueue[_News] = field(default_factory=queue.SimpleQueue)

    def run(self) -> dict[int, Outcome]:
        self.pending.extend(self.tasks)
        self.free.extend(self.daemons)
        while self.pending or self.running:
            self._assign()
            if not self.running:
                raise JobError(self._nobody())
            with interrupts.waiting():
                news = self.news.get()
            self._handle(news)
        return self.outcomes

    def cancel(self) -> None:
        for job in self.running:
            if job.job_id:
                # The daemon may be the one that is gone; the term fences its job then.
                with contextlib.suppress(RepSearchError):
                    job.daemon.cancel(job.job_id, job.request.term)

    def _assign(self) -> None:
        while self.pending and self.free:
            daemon, task = self.free.popleft(), self.pending.popleft()
            job = _Job(daemon, task, task.request(task.attempt, daemon))
            self.running.append(job)
            threading.Thread(target=_follow, args=(job, self.news), name=f"{self.service} {daemon.address}", daemon=True).start()

    def _handle(self, news: _News) -> None:
        if news.event is not None:
            self._event(news.job, news.event)
            return
        self.running.remove(news.job)
        if isinstance(news.error, DaemonError):
            self._lost(news.job, news.error)
        elif news.error is not None:
            raise news.error
        else:
            assert news.final is not None
            self._ended(news.job, news.final)

    def _event(self, job: _Job, event: jobs_pb2.Event) -> None:
        kind = event.WhichOneof("kind")
        if kind == "points":
            self.hooks.points([(point.key, point.step, point.value) for point in event.points.points])
        elif kind == "heartbeat" and event.heartbeat.total:
            job.done = event.heartbeat.done / event.heartbeat.total * job.task.weight
            self.hooks.heard(job.task.key, event.heartbeat)
            self._progress(event.heartbeat.text)

    def _ended(self, job: _Job, final: jobs_pb2.Job) -> None:
        self.free.append(job.daemon)
        if final.state == jobs_pb2.JOB_STATE_SUCCEEDED:
            self.outcomes[job.task.key] = Outcome(job.task.attempt, final)
            self.hooks.heard(job.task.key, final.progress)
            self._progress("")
            return
        error = failure_of(job.task.what, job.daemon, final)
        self.failures[job.task.key] = self.failures.get(job.task.key, 0) + 1
        # JobError stands for a crashed process or an exception in a plug-in; every other kind names a lasting cause.
        if type(error) is not JobError or self.failures[job.task.key] >= MAX_FAILURES:
            raise error
        self._again(job, str(error))

    def _lost(self, job: _Job, error: DaemonError) -> None:
        self.lost.append(str(error))
        self._again(job, str(error))

    def _again(self, job: _Job, why: str) -> None:
        self.hooks.heard(job.task.key, None)
        self.pending.appendleft(replace(job.task, attempt=job.task.attempt + 1))
        self.hooks.message(f"{job.task.what}: {why}; trying again")

    def _progress(self, text: str) -> None:
        done = sum(task.weight for task in self.tasks if task.key in self.outcomes)
        self.hooks.progress(done + sum(job.done for job in self.running), text)

    def _nobody(self) -> str:
        undone = ", ".join(task.what for task in list(self.pending)[:3]) + (", ..." if len(self.pending) > 3 else "")
        reasons = "".join(f"\n  {reason}" for reason in self.lost)
        return f"no {self.service} daemon is left for {undone}:{reasons}"


def _follow(job: _Job, news: queue.SimpleQueue[_News]) -> None:
    """Start the job and put its events, and its end, into `news`."""
    try:
        reach("job.start.before")
        final = job.daemon.start(job.request)
        reach("job.start.after")
        job.job_id = final.job_id
        for event in job.daemon.watch(final.job_id):
            if event.WhichOneof("kind") == "state":
                final = event.state
            news.put(_News(job, event=event))
        news.put(_News(job, final=final))
    except BaseException as error:
        # Raised again in the calling thread.
        news.put(_News(job, error=error))


def failure_of(what: str, daemon: Daemon, final: jobs_pb2.Job) -> RepSearchError:
    """Return the error of a job for `what` that did not succeed."""
    where = f"{what}, on {daemon.address}"
    if final.state == jobs_pb2.JOB_STATE_FAILED:
        kind, message = final.failure.kind, final.failure.message
        return from_kind(kind, f"{where}: {message if kind in KINDS else f'{kind}: {message}'}")
    return JobError(f"{where}: the job ended as {jobs_pb2.JobState.Name(final.state)}")
