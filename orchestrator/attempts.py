"""A job on a daemon, followed by a thread that puts what it hears into a queue: the parts that `scheduling` is made of."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from repsearch.errors import KINDS, DaemonError, JobError, RepSearchError, from_kind
from repsearch.failpoints import reach
from repsearch.rpc.v1 import jobs_pb2


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


class TakenOverError(DaemonError):
    """Another orchestrator works on the run, with a higher term; ours must end."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A job to be done.

    key: number among the tasks of one call.
    what: name in messages, such as "shard 3 of round 1".
    weight: share of the progress, such as examples.
    attempt: number of the attempt; the next try has the next one.
    request: the job's request for an attempt on a daemon.
    keeps: whether a job that is cancelled keeps what it has, so that nothing is lost by it.
    found: what an attempt committed whose end was not heard, if it did.
    """

    key: int
    what: str
    weight: float
    attempt: int
    request: Callable[[int, Daemon], jobs_pb2.StartRequest]
    keeps: bool = False
    found: Callable[[int], jobs_pb2.Reference | None] = lambda attempt: None


@dataclass(eq=False)
class Attempt:
    """A job that runs: on which daemon, for which task, and how far it is. Times are monotonic.

    queued: it waits on its daemon for another job. counter, advanced: progress that was heard last, and when it changed.
    leaving: why we cancelled it ("" otherwise), at `left`.
    """

    daemon: Daemon
    task: Task
    request: jobs_pb2.StartRequest
    number: int
    job_id: str = ""
    done: float = 0.0
    counter: int = -1
    queued: bool = False
    leaving: str = ""
    left: float = 0.0
    reported: bool = False
    begun: float = field(default_factory=time.monotonic)
    advanced: float = field(default_factory=time.monotonic)

    def heard(self, event: jobs_pb2.Event) -> None:
        """Take note of an event."""
        kind = event.WhichOneof("kind")
        if kind == "state":
            self.queued = event.state.state == jobs_pb2.JOB_STATE_QUEUED
            self.advanced = time.monotonic()
        elif kind == "heartbeat":
            if self.queued or event.heartbeat.counter != self.counter:
                self.counter, self.advanced = event.heartbeat.counter, time.monotonic()
            if event.heartbeat.total:
                self.done = event.heartbeat.done / event.heartbeat.total * self.task.weight
        else:
            self.advanced = time.monotonic()

    def stands_still(self) -> float:
        """Return the seconds since it advanced."""
        return time.monotonic() - self.advanced

    def leave(self, why: str) -> None:
        """Cancel the job, without waiting: its daemon may not answer."""
        self.leaving, self.left = why, time.monotonic()
        threading.Thread(target=self.cancel, name=f"cancel {self.daemon.address}", daemon=True).start()

    def cancel(self) -> None:
        """Cancel the job; a daemon that is gone is fenced by the term."""
        if self.job_id:
            with contextlib.suppress(RepSearchError):
                self.daemon.cancel(self.job_id, self.request.term)


@dataclass
class News:
    """What the loop acts on: an event of an attempt or its end (`final` or `error`), or a daemon that is back."""

    attempt: Attempt | None = None
    event: jobs_pb2.Event | None = None
    final: jobs_pb2.Job | None = None
    error: BaseException | None = None
    back: Daemon | None = None


def follow(attempt: Attempt, news: queue.SimpleQueue[News]) -> None:
    """Start the job and put its events, and its end, into `news`."""
    try:
        reach("job.start.before")
        final = attempt.daemon.start(attempt.request)
        reach("job.start.after")
        attempt.job_id = final.job_id
        if attempt.leaving:
            attempt.cancel()
        for event in attempt.daemon.watch(final.job_id):
            if event.WhichOneof("kind") == "state":
                final = event.state
            news.put(News(attempt, event=event))
        news.put(News(attempt, final=final))
    except BaseException as error:
        # Raised again, or acted on, in the calling thread.
        news.put(News(attempt, error=error))


def failure_of(what: str, daemon: Daemon, final: jobs_pb2.Job) -> RepSearchError:
    """Return the error of a job for `what` that did not succeed."""
    where = f"{what}, on {daemon.address}"
    if final.state == jobs_pb2.JOB_STATE_FAILED:
        kind, message = final.failure.kind, final.failure.message
        return from_kind(kind, f"{where}: {message if kind in KINDS else f'{kind}: {message}'}")
    return JobError(f"{where}: the job ended as {jobs_pb2.JobState.Name(final.state)}")
