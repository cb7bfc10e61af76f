"""The state of all jobs of a daemon: queue, terms, events. Knows neither gRPC nor processes.

A job is QUEUED, RUNNING, then SUCCEEDED, FAILED or CANCELLED. Its changes of state and its points are events with sequence numbers
from 1; they are kept as long as the job is, so that a watcher can begin anywhere. Progress is not kept: only its newest value is, and
watchers get it as heartbeats. Memory is bounded: `MAX_POINTS` points a job, `ITEM_LIMIT` items and `ITEM_BYTES` bytes of them that a
stream job has yet to do, and finished jobs are forgotten, oldest first, beyond `KEEP_JOBS` jobs, `KEEP_POINTS` points or `KEEP_BYTES` bytes
of requests.

One lock guards everything; listeners are called without it.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from repsearch.rpc.v1 import compute_pb2, jobs_pb2
from repsearch.serving.refusals import BadRequest, Draining, OutOfRange, QueueFull, RequestReused, UnknownJob
from repsearch.serving.terms import Terms

QUEUE_LIMIT = 16
KEEP_JOBS = 256
KEEP_POINTS = 500_000
KEEP_BYTES = 64 * 1024 * 1024
ITEM_LIMIT = 4096
ITEM_BYTES = 64 * 1024 * 1024
HEARTBEAT_S = 2.0
FINISHED = (jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED)
STREAMS = ("stream_search", "stream_learn")
"""Specs whose jobs take items."""
CANCELLED = compute_pb2.Outcome(state=jobs_pb2.JOB_STATE_CANCELLED)


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
        return self.job.state in FINISHED

    @property
    def size(self) -> int:
        """Bytes of its request."""
        return self.request.ByteSize()


@dataclass(frozen=True)
class Unfinished:
    """A job that waits or runs, as far as those need to know who watch over it. without_items: a stream job that has none to do."""

    job_id: str
    run_id: str
    running: bool
    counter: int
    without_items: bool


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A table in numbers: jobs waiting, the kind of the running one, its units done and in all, seconds since it advanced, jobs ended."""

    waiting: int
    running: list[str]
    done: int
    total: int
    silent_s: float
    ended: dict[tuple[str, str], int]


class Table:
    """All jobs of one incarnation. `on_queue()` is called when a job may be taken, `on_cancel(job_id)` when a running one must stop,
    `on_push()` when it has an item to be given."""

    def __init__(
        self,
        incarnation: str,
        *,
        on_queue: Callable[[], None],
        on_cancel: Callable[[str], None],
        on_idle: Callable[[], None],
        on_push: Callable[[], None] = lambda: None,
    ) -> None:
        self.incarnation = incarnation
        self._on_queue, self._on_cancel, self._on_idle, self._on_push = on_queue, on_cancel, on_idle, on_push
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        self._requests: dict[tuple[str, int, str], Record] = {}
        self._terms = Terms()
        self._queue: deque[Record] = deque()
        self._running: Record | None = None
        self._stopping: deque[str] = deque()  # running jobs whose listener has yet to be told
        self._draining = False
        self._ended: Counter[tuple[str, str]] = Counter()

    # Calls of clients

    def submit(self, request: jobs_pb2.StartRequest) -> jobs_pb2.Job:
        """Return the job of `request`, queued now unless it is known; a Refusal if it is stale, too many wait, or we drain."""
        key = (request.run_id, request.term, request.request_id)
        with self._changing():
            self._fence(request.run_id, request.term)
            record = self._requests.get(key)
            if record is None:
                record = self._add(request)
            elif record.request != request:
                raise RequestReused(f"request_id {request.request_id!r} was used for another request of run {request.run_id!r}")
            answer = _copy(record.job)
        self._on_queue()
        return answer

    def cancel(self, job_id: str, term: int) -> jobs_pb2.Job:
        """Cancel the job: at once if it waits, at its next safe point if it runs; a finished one stays as it is."""
        with self._changing():
            record = self._get(job_id)
            self._fence(record.job.run_id, term)
            self._cancel(record)
            return _copy(record.job)

    def push(self, request: jobs_pb2.PushRequest) -> jobs_pb2.Job:
        """Give a stream job its next item, unless it has it or is finished; OutOfRange for an item that leaves a gap."""
        with self._changing():
            record = self._get(request.job_id)
            self._fence(record.job.run_id, request.term)
            if record.request.WhichOneof("spec") not in STREAMS:
                raise BadRequest(f"job {request.job_id} takes no items; start one of {', '.join(STREAMS)}")
            if not 1 <= request.sequence <= record.pushed + 1:
                raise OutOfRange(f"job {request.job_id}: item {request.sequence} was pushed, the last one was {record.pushed}")
            if request.sequence == record.pushed + 1 and not record.finished:
                self._take_item(record, request.item)
            answer = _copy(record.job)
        self._on_push()
        return answer

    def run_of(self, job_id: str) -> str:
        """Return the id of the job's run; "" if there is no such job."""
        with self._lock:
            record = self._records.get(job_id)
            return record.job.run_id if record is not None else ""

    def run_path(self, job_id: str) -> str:
        """Return the folder of the job's run; UnknownJob if there is no such job."""
        with self._lock:
            return self._get(job_id).request.run_path

    def get(self, job_id: str) -> jobs_pb2.Job:
        """Return the job as it is now; UnknownJob if there is none."""
        with self._lock:
            return _copy(self._get(job_id).job)

    def watch(self, job_id: str, from_sequence: int, closed: threading.Event) -> Iterator[jobs_pb2.Event]:
        """Yield the job's events from `from_sequence` on, with heartbeats between, up to its last event or until `closed` is set."""
        with self._lock:
            record = self._get(job_id)
            if from_sequence > len(record.events) + 1:
                raise OutOfRange(f"job {job_id}: sequence {from_sequence} asked for, the last one is {len(record.events)}")
        position = max(from_sequence, 1) - 1
        counter, beat_at = -1, 0.0
        while not closed.is_set():
            with record.changed:
                wait_s = beat_at + HEARTBEAT_S - time.monotonic()
                idle = position == len(record.events) and counter == record.job.progress.counter and not record.finished
                if idle and wait_s > 0 and not closed.is_set():
                    record.changed.wait(wait_s)
                events, progress, finished = record.events[position:], _progress(record), record.finished
            position += len(events)
            yield from events
            if finished:
                return
            if progress.counter != counter or time.monotonic() - beat_at >= HEARTBEAT_S:
                counter, beat_at = progress.counter, time.monotonic()
                yield jobs_pb2.Event(job_id=job_id, time_ms=_now_ms(), heartbeat=progress)

    def wake(self, job_id: str) -> None:
        """Let the job's watchers look whether they are closed."""
        with self._lock:
            if (record := self._records.get(job_id)) is not None:
                record.changed.notify_all()

    # Calls of the supervisor

    def take(self) -> compute_pb2.RunJob | None:
        """Mark the first waiting job RUNNING and return it; None if none waits or one is running."""
        with self._lock:
            if self._running is not None or not self._queue:
                return None
            record = self._running = self._queue.popleft()
            record.job.state, record.advanced = jobs_pb2.JOB_STATE_RUNNING, time.monotonic()
            self._state_event(record)
            return compute_pb2.RunJob(job_id=record.job.job_id, request=record.request)

    def running(self) -> str | None:
        """The id of the running job, if any."""
        with self._lock:
            return self._running.job.job_id if self._running else None

    def cancelling(self, job_id: str) -> bool:
        """Whether the running job is `job_id` and has been told to stop."""
        with self._lock:
            return self._running is not None and self._running.job.job_id == job_id and self._running.cancelling

    def progress(self, progress: jobs_pb2.Progress) -> None:
        """Keep the running job's newest progress."""
        with self._lock:
            if self._running is not None:
                if progress.counter > self._running.job.progress.counter:
                    self._running.advanced = time.monotonic()
                self._running.job.progress.CopyFrom(progress)
                self._running.changed.notify_all()

    def points(self, points: jobs_pb2.Points) -> None:
        """Append points to the running job's events."""
        with self._lock:
            if self._running is not None:
                self._running.points += len(points.points)
                self._append(self._running, jobs_pb2.Event(points=points))

    def untold(self) -> list[compute_pb2.NextItem]:
        """Return the items of the running job that its process has not been given, which it has then."""
        with self._lock:
            if self._running is None:
                return []
            items = [compute_pb2.NextItem(job_id=self._running.job.job_id, item=item) for item in self._running.untold]
            self._running.untold.clear()
            return items

    def item_done(self, done: jobs_pb2.ItemDone) -> None:
        """Append the end of an item to the running job's events."""
        with self._lock:
            if self._running is not None:
                if self._running.undone:
                    self._running.undone.popleft()
                self._running.answered += 1
                self._append(self._running, jobs_pb2.Event(item_done=done))

    def finish(self, outcome: compute_pb2.Outcome) -> None:
        """End the running job; a failure of one that was told to stop counts as its cancellation."""
        with self._lock:
            if self._running is None:
                return
            record, self._running = self._running, None
            stopped = record.cancelling and outcome.state == jobs_pb2.JOB_STATE_FAILED
            self._end(record, CANCELLED if stopped else outcome)
        self._on_idle()

    def fail_waiting(self, failure: jobs_pb2.Failure) -> None:
        """End every waiting job as FAILED: there is nothing to run them."""
        with self._lock:
            while self._queue:
                self._end(self._queue.popleft(), compute_pb2.Outcome(state=jobs_pb2.JOB_STATE_FAILED, failure=failure))

    # Calls of the daemon

    def drain(self) -> None:
        """Take no more jobs and cancel the waiting ones; the running one goes on."""
        with self._lock:
            self._draining = True
            while self._queue:
                self._end(self._queue.popleft(), CANCELLED)
        self._on_idle()

    def cancel_running(self) -> None:
        """Tell the running job, if any, to stop."""
        with self._changing():
            if self._running is not None:
                self._cancel(self._running)

    @property
    def draining(self) -> bool:
        return self._draining

    def unfinished(self) -> list[str]:
        """Ids of the running and the waiting jobs."""
        with self._lock:
            return [record.job.job_id for record in self._records.values() if not record.finished]

    def unfinished_jobs(self) -> list[Unfinished]:
        """The running and the waiting jobs."""
        with self._lock:
            return [
                Unfinished(
                    job_id=record.job.job_id,
                    run_id=record.job.run_id,
                    running=record is self._running,
                    counter=record.job.progress.counter,
                    without_items=record.request.WhichOneof("spec") in STREAMS and record.answered == record.pushed,
                )
                for record in self._records.values()
                if not record.finished
            ]

    def abandon(self, job_id: str) -> None:
        """Cancel a job that nobody cares for any more; a finished one stays as it is."""
        with self._changing():
            if (record := self._records.get(job_id)) is not None:
                self._cancel(record)

    def figures(self) -> Figures:
        """Return the table in numbers."""
        with self._lock:
            record = self._running
            return Figures(
                waiting=len(self._queue),
                running=[] if record is None else [_kind(record)],
                done=0 if record is None else record.job.progress.done,
                total=0 if record is None else record.job.progress.total,
                silent_s=0.0 if record is None else time.monotonic() - record.advanced,
                ended=dict(self._ended),
            )

    # With the lock held

    def _fence(self, run_id: str, term: int) -> None:
        """Refuse a term below the run's highest; a higher one cancels the run's older jobs."""
        self._terms.fence(run_id, term)
        for record in list(self._records.values()):
            if record.job.run_id == run_id and record.job.term < term and not record.finished:
                self._cancel(record)

    def _add(self, request: jobs_pb2.StartRequest) -> Record:
        if self._draining:
            raise Draining("the daemon is stopping and takes no more jobs; use another one or start it again")
        if len(self._queue) >= QUEUE_LIMIT:
            raise QueueFull(f"{QUEUE_LIMIT} jobs are waiting already; start this one when another has finished")
        job = jobs_pb2.Job(job_id=uuid.uuid4().hex, request_id=request.request_id, run_id=request.run_id, term=request.term)
        job.state, job.incarnation = jobs_pb2.JOB_STATE_QUEUED, self.incarnation
        record = Record(job, request, threading.Condition(self._lock))
        self._records[job.job_id] = self._requests[(request.run_id, request.term, request.request_id)] = record
        self._queue.append(record)
        self._state_event(record)
        return record

    def _take_item(self, record: Record, item: jobs_pb2.Item) -> None:
        size = item.ByteSize()
        if len(record.undone) >= ITEM_LIMIT or sum(record.undone) + size > ITEM_BYTES:
            raise QueueFull(f"job {record.job.job_id} has {len(record.undone)} items to do already; push this one when another is done")
        record.pushed += 1
        record.untold.append(item)
        record.undone.append(size)

    def _cancel(self, record: Record) -> None:
        if record in self._queue:
            self._queue.remove(record)
            self._end(record, CANCELLED)
        elif record is self._running and not record.cancelling:
            record.cancelling = True
            self._stopping.append(record.job.job_id)

    def _end(self, record: Record, outcome: compute_pb2.Outcome) -> None:
        record.job.state = outcome.state
        record.job.dataset_digest = outcome.dataset_digest
        if outcome.HasField("failure"):
            record.job.failure.CopyFrom(outcome.failure)
        if outcome.HasField("result"):
            record.job.result.CopyFrom(outcome.result)
        self._ended[_kind(record), jobs_pb2.JobState.Name(outcome.state).removeprefix("JOB_STATE_").lower()] += 1
        self._state_event(record)
        self._forget()

    def _state_event(self, record: Record) -> None:
        record.job.last_sequence = len(record.events) + 1
        self._append(record, jobs_pb2.Event(state=record.job))

    def _append(self, record: Record, event: jobs_pb2.Event) -> None:
        event.sequence, event.job_id, event.time_ms = len(record.events) + 1, record.job.job_id, _now_ms()
        record.events.append(event)
        record.job.last_sequence = event.sequence
        record.changed.notify_all()

    def _forget(self) -> None:
        finished = [record for record in self._records.values() if record.finished]
        points = sum(record.points for record in finished)
        size = sum(record.size for record in finished)
        while len(finished) > KEEP_JOBS or ((points > KEEP_POINTS or size > KEEP_BYTES) and len(finished) > 1):
            oldest = finished.pop(0)
            points, size = points - oldest.points, size - oldest.size
            del self._records[oldest.job.job_id]
            del self._requests[(oldest.job.run_id, oldest.job.term, oldest.job.request_id)]

    def _get(self, job_id: str) -> Record:
        if job_id not in self._records:
            raise UnknownJob(f"no job {job_id!r} in incarnation {self.incarnation}: it is another incarnation's, or was forgotten")
        return self._records[job_id]

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock, then, also after a Refusal, tell the listener of the running jobs that must stop."""
        try:
            with self._lock:
                yield
        finally:
            while self._stopping:
                self._on_cancel(self._stopping.popleft())


def _kind(record: Record) -> str:
    return record.request.WhichOneof("spec") or ""


def _copy(job: jobs_pb2.Job) -> jobs_pb2.Job:
    copy = jobs_pb2.Job()
    copy.CopyFrom(job)
    return copy


def _progress(record: Record) -> jobs_pb2.Progress:
    copy = jobs_pb2.Progress()
    copy.CopyFrom(record.job.progress)
    return copy


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
