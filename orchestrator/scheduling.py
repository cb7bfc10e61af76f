"""Jobs on daemons: each task goes to whichever daemon is free; a task whose daemon is lost goes to another.

One thread per running job reads the job's events into a queue; the calling thread alone takes them out, assigns tasks and decides.

- A lost daemon is out until it is back (`roster`); with none left, the call waits for one as long as its bounds say.
- A failed job is tried again, on any daemon, up to `MAX_FAILURES` times, unless its error says that a second try fails the same way (a
  bad configuration, a number that is not finite). A job without progress is reported, then cancelled, and counts as failed.
- While a daemon is idle, the task that is furthest behind gets a second attempt. The first that succeeds counts; all give the same bits.
"""

from __future__ import annotations

import math
import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from orchestrator import interrupts
from orchestrator.attempts import Attempt, Daemon, News, TakenOverError, Task, failure_of, follow
from orchestrator.control import stopped
from orchestrator.oversight import Oversight, Wait
from orchestrator.patience import TICK_S, Patience
from repsearch.errors import DaemonError, JobError
from repsearch.rpc.v1 import jobs_pb2

MAX_FAILURES = 3
"""Failed jobs of one task after which the run stops."""
MAX_LOSSES = 20
"""Daemons lost in the middle of one task after which the run stops: the task may be what ends them."""
CANCEL_S = 30.0
"""Seconds that a cancelled job has to end, before its daemon counts as lost; the daemon itself kills it after 10."""
Points = list[tuple[str, int, float]]


@dataclass(frozen=True)
class Outcome:
    """A task that succeeded: which attempt, and the job as the daemon reported it."""

    attempt: int
    job: jobs_pb2.Job


@dataclass(frozen=True)
class Hooks:
    """What the caller does with news: progress (weight done, text), points of a curve, a line for people. Called in its own thread.

    took: how many seconds a task took that succeeded, and where.
    heard: the newest progress of a task, by its key, ahead of `progress`; None when the task begins anew.
    """

    progress: Callable[[float, str], None] = lambda done, text: None
    heard: Callable[[int, jobs_pb2.Progress | None], None] = lambda key, progress: None
    points: Callable[[Points], None] = lambda points: None
    message: Callable[[str], None] = lambda text: None
    took: Callable[[Task, Daemon, float], None] = lambda task, daemon, seconds: None


def run_tasks(
    tasks: Sequence[Task],
    daemons: Sequence[Daemon],
    hooks: Hooks,
    *,
    service: str,
    oversight: Oversight | None = None,
    more: Callable[[Daemon], Task | None] = lambda daemon: None,
) -> dict[int, Outcome]:
    """Return the outcome of every task, by key.

    more: another task, for a daemon that is free when all of `tasks` are given out; None when there is none left, for anybody.
    Raises `JobError` when no daemon is left or a task failed too often, and a task's own error where trying again cannot help.
    Whatever ends the call early, Ctrl-C included, cancels the jobs that run.
    """
    oversight = oversight or Oversight()
    schedule = _Schedule(list(tasks), daemons, hooks, service, oversight, more)
    try:
        with oversight.roster.listening(lambda daemon: schedule.news.put(News(back=daemon))):
            return schedule.run()
    except BaseException:
        schedule.cancel()
        raise
    finally:
        oversight.waits([])


@dataclass
class _Schedule:
    """State of one `run_tasks` call. attempts: the number of the newest attempt by task."""

    tasks: list[Task]
    daemons: Sequence[Daemon]
    hooks: Hooks
    service: str
    oversight: Oversight
    more: Callable[[Daemon], Task | None]
    all_known: bool = False
    pending: deque[Task] = field(default_factory=deque)
    free: deque[Daemon] = field(default_factory=deque)
    running: list[Attempt] = field(default_factory=list)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)
    losses: dict[int, int] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    paces: list[float] = field(default_factory=list)
    """Seconds per weight of the attempts that succeeded."""
    news: queue.SimpleQueue[News] = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        self.patience = Patience(self.oversight, self.service, self.daemons, self._tell)

    def run(self) -> dict[int, Outcome]:
        self.pending.extend(self.tasks)
        self.free.extend(daemon for daemon in self.daemons if not self.oversight.roster.is_lost(daemon))
        while not self._complete():
            if not self._held():
                self._assign()
                if self._complete():
                    break  # at once: a tick more would be most of a short round
                self._hedge()
                self._require_daemon()
            self.oversight.waits(self._waits())
            with interrupts.waiting(), suppress(queue.Empty):
                self._handle(self.news.get(timeout=TICK_S))
            self._look()
        return self.outcomes

    def _complete(self) -> bool:
        return self.all_known and len(self.outcomes) == len(self.tasks)

    def cancel(self) -> None:
        for attempt in self.running:
            if not attempt.leaving and not self.oversight.roster.is_lost(attempt.daemon):
                attempt.cancel()

    def _held(self) -> bool:
        """Whether no job is to begin because people asked for that; raises `StoppedError` when nothing runs and the run is to stop."""
        wanted = self.oversight.wanted()
        if not wanted:
            return False
        self.patience.over()
        for attempt in self.running:
            if attempt.task.keeps and not attempt.leaving:
                attempt.leave("asked")
        if wanted == "stop" and not self.running:
            raise stopped()
        return True

    def _assign(self) -> None:
        while self.free and (self.pending or self._another(self.free[0])):
            self._begin(self.pending.popleft(), self.free.popleft())

    def _another(self, daemon: Daemon) -> bool:
        """Whether there is another task, for `daemon`; it waits then."""
        task = None if self.all_known else self.more(daemon)
        if task is None:
            self.all_known = True
            return False
        self.tasks.append(task)
        self.pending.append(task)
        return True

    def _begin(self, task: Task, daemon: Daemon) -> None:
        number = self.attempts[task.key] = self.attempts.get(task.key, task.attempt - 1) + 1
        attempt = Attempt(daemon, task, task.request(number, daemon), number)
        self.running.append(attempt)
        threading.Thread(target=follow, args=(attempt, self.news), name=f"{self.service} {daemon.address}", daemon=True).start()

    def _hedge(self) -> None:
        """Give the task that is furthest behind to a daemon that has nothing to do, if that can be expected to be done sooner."""
        if not (self.oversight.bounds.hedge and self.free and self.paces):
            return
        behind = max(self._alone(), key=self._left, default=None)
        if behind is None:
            return
        again = statistics.median(self.paces) * behind.task.weight
        if time.monotonic() - behind.begun > again and self._left(behind) > again:
            daemon = self.free.popleft()
            text = f"{behind.task.what}: slow on {behind.daemon.address}; {daemon.address} tries it too"
            self._tell("hedged", text)
            self._begin(behind.task, daemon)

    def _alone(self) -> list[Attempt]:
        """Return the attempts at tasks that have no other."""
        keys = [attempt.task.key for attempt in self.running]
        return [a for a in self.running if not a.leaving and a.task.key not in self.outcomes and keys.count(a.task.key) == 1]

    def _left(self, attempt: Attempt) -> float:
        """Return the seconds that an attempt can be expected to need still."""
        elapsed, share = time.monotonic() - attempt.begun, attempt.done / attempt.task.weight
        if share > 0:
            # What was heard of it is as old as its last progress.
            return max(0.0, (elapsed - attempt.stands_still()) / share - elapsed) + attempt.stands_still()
        usual = statistics.median(self.paces) * attempt.task.weight
        return math.inf if elapsed > 2 * usual else 0.0

    def _require_daemon(self) -> None:
        """Wait, up to the bound, where no daemon is left; then raise."""
        if self.running or self.free:
            self.patience.over()
        else:
            self.patience.require(self._undone())

    def _look(self) -> None:
        """Report what stands still, cancel what does for too long, and give up on daemons that do not end what was cancelled."""
        bounds = self.oversight.bounds
        for attempt in list(self.running):
            still = attempt.stands_still()
            if attempt.leaving:
                if time.monotonic() - attempt.left > CANCEL_S:
                    self._lost(attempt, DaemonError(f"{attempt.daemon.address}: it did not end a cancelled job within {CANCEL_S:g} s"))
            elif attempt.queued:
                continue
            elif still > bounds.stall_s:
                self._tell("stalled", f"{self._where(attempt)}: no progress for {still:.0f} s: cancelled")
                attempt.leave("stalled")
            elif still > bounds.report_s and not attempt.reported:
                attempt.reported = True
                left = f"; cancelled after {bounds.stall_s:g} s" if bounds.stall_s < math.inf else ""
                self._tell("still", f"{self._where(attempt)}: alive, but no progress for {still:.0f} s{left}")

    def _handle(self, news: News) -> None:
        if news.back is not None:
            if news.back in self.daemons and news.back not in (*self.free, *(attempt.daemon for attempt in self.running)):
                self.free.append(news.back)
            return
        attempt = news.attempt
        assert attempt is not None
        if attempt not in self.running:
            return  # given up
        if news.event is not None:
            self._event(attempt, news.event)
        elif isinstance(news.error, TakenOverError):
            raise JobError(str(news.error))
        elif isinstance(news.error, DaemonError):
            self._lost(attempt, news.error)
        elif news.error is not None:
            self.running.remove(attempt)
            raise news.error
        else:
            assert news.final is not None
            self._ended(attempt, news.final)

    def _event(self, attempt: Attempt, event: jobs_pb2.Event) -> None:
        attempt.heard(event)
        if attempt.reported and not attempt.leaving and attempt.stands_still() < self.oversight.bounds.report_s:
            attempt.reported = False
            self._tell("goes_on", f"{self._where(attempt)}: it goes on")
        kind = event.WhichOneof("kind")
        if kind == "points":
            self.hooks.points([(point.key, point.step, point.value) for point in event.points.points])
        elif kind == "heartbeat" and event.heartbeat.total and self._ahead(attempt):
            self.hooks.heard(attempt.task.key, event.heartbeat)
            self._progress(event.heartbeat.text)

    def _ahead(self, attempt: Attempt) -> bool:
        """Whether no other attempt at the task is further."""
        key = attempt.task.key
        return key not in self.outcomes and all(other.done <= attempt.done for other in self.running if other.task.key == key)

    def _ended(self, attempt: Attempt, final: jobs_pb2.Job) -> None:
        self.running.remove(attempt)
        self.free.append(attempt.daemon)
        task = attempt.task
        if task.key in self.outcomes:
            return
        if final.state == jobs_pb2.JOB_STATE_SUCCEEDED:
            self._succeeded(attempt, final)
            return
        if attempt.leaving == "asked":
            self.pending.appendleft(task)
            return
        if self._found(attempt):
            return
        error = failure_of(task.what, attempt.daemon, final)
        if attempt.leaving == "stalled":
            error = JobError(f"{self._where(attempt)}: no progress for {self.oversight.bounds.stall_s:g} s")
        self.failures[task.key] = self.failures.get(task.key, 0) + 1
        # JobError stands for a crashed process or an exception in a plug-in; every other kind names a lasting cause.
        if type(error) is not JobError or self.failures[task.key] >= MAX_FAILURES:
            raise error
        self._again(task, str(error))

    def _succeeded(self, attempt: Attempt, final: jobs_pb2.Job) -> None:
        task, seconds = attempt.task, time.monotonic() - attempt.begun
        self.paces.append(seconds / task.weight)
        self.hooks.took(task, attempt.daemon, seconds)
        self._done(attempt, final)

    def _found(self, attempt: Attempt) -> bool:
        """Whether an attempt whose daemon or process died had committed its result, which counts then."""
        reference = attempt.task.found(attempt.number)
        if reference is None:
            return False
        self._tell("found", f"{self._where(attempt)}: it was committed before its answer was lost, and is used")
        self._done(attempt, jobs_pb2.Job(job_id=attempt.job_id, state=jobs_pb2.JOB_STATE_SUCCEEDED, result=reference))
        return True

    def _done(self, attempt: Attempt, final: jobs_pb2.Job) -> None:
        task = attempt.task
        self.outcomes[task.key] = Outcome(attempt.number, final)
        self.pending = deque(other for other in self.pending if other.key != task.key)
        for other in self.running:
            if other.task.key == task.key and not other.leaving:
                other.leave("superseded")
        self.hooks.heard(task.key, final.progress)
        self._progress("")

    def _lost(self, attempt: Attempt, error: DaemonError) -> None:
        self.running.remove(attempt)
        self.oversight.roster.lose(attempt.daemon, str(error))
        if attempt.task.key in self.outcomes or self._found(attempt):
            return
        self.losses[attempt.task.key] = self.losses.get(attempt.task.key, 0) + 1
        if self.losses[attempt.task.key] >= MAX_LOSSES:
            raise JobError(f"{attempt.task.what}: {MAX_LOSSES} daemons were lost over it, the last one: {error}")
        self._again(attempt.task, str(error))

    def _again(self, task: Task, why: str) -> None:
        if any(other.task.key == task.key for other in self.running):
            self.hooks.message(f"{task.what}: {why}; another attempt goes on")
            return
        self.hooks.heard(task.key, None)
        self.pending.appendleft(task)
        self.hooks.message(f"{task.what}: {why}; trying again")

    def _progress(self, text: str) -> None:
        done = sum(task.weight for task in self.tasks if task.key in self.outcomes)
        undone = {a.task.key: a.done for a in sorted(self.running, key=lambda a: a.done) if a.task.key not in self.outcomes}
        self.hooks.progress(done + sum(undone.values()), text)

    def _waits(self) -> list[Wait]:
        bounds, waits = self.oversight.bounds, []
        for attempt in self.running:
            ends, note = attempt.advanced + bounds.stall_s, ""
            if attempt.leaving:
                ends, note = attempt.left + CANCEL_S, f"cancelled: {attempt.leaving}"
            elif attempt.queued:
                ends, note = math.inf, "it waits for another job there"
            elif attempt.reported:
                note = f"no progress for {attempt.stands_still():.0f} s"
            until = ends if ends < math.inf else None
            waits.append(Wait(who="orchestrator", what=self._where(attempt), since=attempt.begun, until=until, note=note))
        return [*waits, *self.patience.waits(self._undone())]

    def _undone(self) -> str:
        named = ", ".join(task.what for task in list(self.pending)[:3]) + (", ..." if len(self.pending) > 3 else "")
        return named or "what is to come"

    def _where(self, attempt: Attempt) -> str:
        return f"{attempt.task.what}, on {attempt.daemon.address}"

    def _tell(self, event: str, text: str) -> None:
        self.hooks.message(text)
        self.oversight.tell(event, text)
