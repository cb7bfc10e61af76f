"""One job of a daemon: its message, its request, its events.

A job is QUEUED, RUNNING, then SUCCEEDED, FAILED or CANCELLED. Its changes of state and its points are events with sequence numbers
from 1; they are kept as long as the job is, so that a watcher can begin anywhere. Progress is not kept: only its newest value is, and
watchers get it as heartbeats. But for `watch`, everything here is called with the table's lock held.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from repsearch.rpc.v1 import compute_pb2, jobs_pb2
from repsearch.serving.refusals import QueueFull

ITEM_LIMIT = 4096
ITEM_BYTES = 64 * 1024 * 1024
HEARTBEAT_S = 2.0
FINISHED = (jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED)
STREAMS = ("stream_search", "stream_learn")
"""Specs whose jobs take items."""


@dataclass(frozen=True)
class Unfinished:
    """A job that waits or runs, as far as those need to know who watch over it. without_items: a stream job that has none to do."""

    job_id: str
    run_id: str
    running: bool
    counter: int
    without_items: bool


@dataclass(eq=False)
class Record:
    """One job: the message that `Get` answers with, its request, its events, and the condition its watchers wait on."""

    job: jobs_pb2.Job
    request: jobs_pb2.StartRequest
    changed: threading.Condition
    events: list[jobs_pb2.Event] = field(default_factory=list)
    points: int = 0
    cancelling: bool = False
    pushed: int = 0
    answered: int = 0
    untold: deque[jobs_pb2.Item] = field(default_factory=deque)
    """Items pushed that the compute process has not been given."""
    undone: deque[int] = field(default_factory=deque)
    """Sizes in bytes of the items pushed that are not done."""
    advanced: float = 0.0
    """When it last advanced, or began (`time.monotonic`)."""

    @property
    def finished(self) -> bool:
        """Whether it has ended."""
        return self.job.state in FINISHED

    @property
    def kind(self) -> str:
        """Which spec its request has."""
        return self.request.WhichOneof("spec") or ""

    @property
    def takes_items(self) -> bool:
        """Whether it is a stream job."""
        return self.kind in STREAMS

    @property
    def size(self) -> int:
        """Bytes of its request."""
        return self.request.ByteSize()

    def copy(self) -> jobs_pb2.Job:
        """Return the job as it is now."""
        copy = jobs_pb2.Job()
        copy.CopyFrom(self.job)
        return copy

    def unfinished(self, *, running: bool) -> Unfinished:
        """Return what those need to know who watch over it."""
        return Unfinished(
            job_id=self.job.job_id,
            run_id=self.job.run_id,
            running=running,
            counter=self.job.progress.counter,
            without_items=self.takes_items and self.answered == self.pushed,
        )

    def append(self, event: jobs_pb2.Event) -> None:
        """Add an event, and wake the watchers."""
        event.sequence, event.job_id, event.time_ms = len(self.events) + 1, self.job.job_id, _now_ms()
        self.events.append(event)
        self.job.last_sequence = event.sequence
        self.changed.notify_all()

    def tell_state(self) -> None:
        """Add the job as it is now as an event."""
        self.job.last_sequence = len(self.events) + 1
        self.append(jobs_pb2.Event(state=self.job))

    def end(self, outcome: compute_pb2.Outcome) -> None:
        """Take the outcome over, and tell it."""
        self.job.state = outcome.state
        self.job.dataset_digest = outcome.dataset_digest
        if outcome.HasField("failure"):
            self.job.failure.CopyFrom(outcome.failure)
        if outcome.HasField("result"):
            self.job.result.CopyFrom(outcome.result)
        self.tell_state()

    def take_item(self, item: jobs_pb2.Item) -> None:
        """Take an item to be done; QueueFull if too many, or too large ones, are there."""
        size = item.ByteSize()
        if len(self.undone) >= ITEM_LIMIT or sum(self.undone) + size > ITEM_BYTES:
            raise QueueFull(f"job {self.job.job_id} has {len(self.undone)} items to do already; push this one when another is done")
        self.pushed += 1
        self.untold.append(item)
        self.undone.append(size)

    def watch(self, position: int, closed: threading.Event) -> Iterator[jobs_pb2.Event]:
        """Yield the events from index `position` on, with heartbeats between, up to the last one or until `closed` is set."""
        counter, beat_at = -1, 0.0
        while not closed.is_set():
            with self.changed:
                wait_s = beat_at + HEARTBEAT_S - time.monotonic()
                idle = position == len(self.events) and counter == self.job.progress.counter and not self.finished
                if idle and wait_s > 0 and not closed.is_set():
                    self.changed.wait(wait_s)
                events, progress, finished = self.events[position:], self._progress(), self.finished
            position += len(events)
            yield from events
            if finished:
                return
            if progress.counter != counter or time.monotonic() - beat_at >= HEARTBEAT_S:
                counter, beat_at = progress.counter, time.monotonic()
                yield jobs_pb2.Event(job_id=self.job.job_id, time_ms=_now_ms(), heartbeat=progress)

    def _progress(self) -> jobs_pb2.Progress:
        copy = jobs_pb2.Progress()
        copy.CopyFrom(self.job.progress)
        return copy


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
