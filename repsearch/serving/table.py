"""All jobs of a daemon: queue, terms, who must stop. Knows neither gRPC nor processes; one job is in `repsearch.serving.record`.

Memory is bounded: `MAX_POINTS` points a job, `ITEM_LIMIT` items and `ITEM_BYTES` bytes of them that a stream job has yet to do, and
finished jobs are forgotten, oldest first, beyond `KEEP_JOBS` jobs, `KEEP_POINTS` points or `KEEP_BYTES` bytes of requests.

One lock guards everything; listeners are called without it.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from repsearch.rpc.v1 import compute_pb2, jobs_pb2
from repsearch.serving.record import STREAMS, Record, Unfinished
from repsearch.serving.refusals import BadRequest, Draining, OutOfRange, QueueFull, RequestReused, UnknownJob
from repsearch.serving.terms import Terms

QUEUE_LIMIT = 16
KEEP_JOBS = 256
KEEP_POINTS = 500_000
KEEP_BYTES = 64 * 1024 * 1024
CANCELLED = compute_pb2.Outcome(state=jobs_pb2.JOB_STATE_CANCELLED)


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
            answer = record.copy()
        self._on_queue()
        return answer

    def cancel(self, job_id: str, term: int) -> jobs_pb2.Job:
        """Cancel the job: at once if it waits, at its next safe point if it runs; a finished one stays as it is."""
        with self._changing():
            record = self._get(job_id)
            self._fence(record.job.run_id, term)
            self._cancel(record)
            return record.copy()

    def push(self, request: jobs_pb2.PushRequest) -> jobs_pb2.Job:
        """Give a stream job its next item, unless it has it or is finished; OutOfRange for an item that leaves a gap."""
        with self._changing():
            record = self._get(request.job_id)
            self._fence(record.job.run_id, request.term)
            if not record.takes_items:
                raise BadRequest(f"job {request.job_id} takes no items; start one of {', '.join(STREAMS)}")
            if not 1 <= request.sequence <= record.pushed + 1:
                raise OutOfRange(f"job {request.job_id}: item {request.sequence} was pushed, the last one was {record.pushed}")
            if request.sequence == record.pushed + 1 and not record.finished:
                record.take_item(request.item)
            answer = record.copy()
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
            return self._get(job_id).copy()

    def watch(self, job_id: str, from_sequence: int, closed: threading.Event) -> Iterator[jobs_pb2.Event]:
        """Yield the job's events from `from_sequence` on, with heartbeats between, up to its last event or until `closed` is set."""
        with self._lock:
            record = self._get(job_id)
            if from_sequence > len(record.events) + 1:
                raise OutOfRange(f"job {job_id}: sequence {from_sequence} asked for, the last one is {len(record.events)}")
        yield from record.watch(max(from_sequence, 1) - 1, closed)

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
            record.tell_state()
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
                self._running.append(jobs_pb2.Event(points=points))

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
                self._running.append(jobs_pb2.Event(item_done=done))

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
            return [record.unfinished(running=record is self._running) for record in self._records.values() if not record.finished]

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
                running=[] if record is None else [record.kind],
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
        record.tell_state()
        return record

    def _cancel(self, record: Record) -> None:
        if record in self._queue:
            self._queue.remove(record)
            self._end(record, CANCELLED)
        elif record is self._running and not record.cancelling:
            record.cancelling = True
            self._stopping.append(record.job.job_id)

    def _end(self, record: Record, outcome: compute_pb2.Outcome) -> None:
        record.end(outcome)
        self._ended[record.kind, jobs_pb2.JobState.Name(outcome.state).removeprefix("JOB_STATE_").lower()] += 1
        self._forget()

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
