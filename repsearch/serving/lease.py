"""Who still cares for the jobs of this daemon, and what becomes of jobs that nobody cares for.

Every call about a run renews its lease; while a watch of it is open, it does not run down. An orchestrator that is gone, stopped or cut
off lets it run out: keepalive closes the watch of a peer that does not answer. What happens then is `Orphaned`; whatever is chosen, no
job runs on that does not advance, and the compute process is replaced once nothing runs, which gives back the memory of its device.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repsearch.serving.record import Unfinished
    from repsearch.serving.table import Table

KEEP_RUNS = 1000
"""Runs that are remembered, those heard of last; a job of any other is not orphaned."""
log = logging.getLogger("lease")


class Orphaned(StrEnum):
    """What becomes of jobs whose orchestrator is gone: finish the running one, stop it, or stop it and end the daemon."""

    finish = "finish"
    stop = "stop"
    exit = "exit"


class Leases:
    """When each run, and anybody, was last heard of. `now`: the monotonic clock."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._lock = now, threading.Lock()
        self._heard: dict[str, float] = {}
        self._watched: dict[str, int] = {}
        self._anybody: float | None = None

    def renew(self, run_id: str = "") -> None:
        """Take note of a call, about `run_id` if it names one."""
        with self._lock:
            self._anybody = self._now()
            if run_id:
                self._heard.pop(run_id, None)
                self._heard[run_id] = self._anybody
                if len(self._heard) > KEEP_RUNS:
                    del self._heard[next(iter(self._heard))]

    @contextmanager
    def watching(self, run_id: str) -> Iterator[None]:
        """Keep the run's lease within the context."""
        self.renew(run_id)
        with self._lock:
            self._watched[run_id] = self._watched.get(run_id, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._watched[run_id] -= 1
                if not self._watched[run_id]:
                    del self._watched[run_id]
            self.renew(run_id)

    def silent(self, run_id: str) -> float:
        """Return the seconds since the run was heard of; 0 while it is watched."""
        with self._lock:
            return 0.0 if self._watched.get(run_id) else self._now() - self._heard.get(run_id, self._now())

    def idle(self) -> float:
        """Return the seconds since anybody called; 0 while somebody watches, and before anybody did."""
        with self._lock:
            return 0.0 if any(self._watched.values()) or self._anybody is None else self._now() - self._anybody


@dataclass
class Caretaker:
    """Looks now and then for jobs whose lease has run out after `after_s`, and acts on them; see `Orphaned`.

    release: replace the compute process, if it has been used. leave: end the daemon.
    """

    table: Table
    leases: Leases
    orphaned: Orphaned
    after_s: float
    release: Callable[[], None]
    leave: Callable[[], None]

    def __post_init__(self) -> None:
        self._counters: dict[str, tuple[int, float]] = {}
        self._said: set[str] = set()
        self._closed = threading.Event()

    def start(self) -> None:
        """Look from a thread, until `close`."""
        threading.Thread(target=self._run, name="caretaker", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(min(1.0, self.after_s / 4)):
            self.look()

    def look(self) -> None:
        """Act on what is orphaned now."""
        jobs = self.table.unfinished_jobs()
        for job in jobs:
            if self.leases.silent(job.run_id) > self.after_s:
                self._orphan(job)
            else:
                self._said.discard(job.job_id)
                self._counters.pop(job.job_id, None)
        if not jobs and self.leases.idle() > self.after_s:
            if self.orphaned is Orphaned.exit:
                self.leave()
            else:
                self.release()

    def _orphan(self, job: Unfinished) -> None:
        why = self._reason_to_stop(job)
        if job.job_id not in self._said:
            self._said.add(job.job_id)
            log.warning(
                "job %s of run %s: nobody has asked for it for %g s%s",
                job.job_id,
                job.run_id,
                self.after_s,
                "" if why else ": it may finish",
            )
        if why:
            log.warning("job %s of run %s is cancelled: %s", job.job_id, job.run_id, why)
            self.table.abandon(job.job_id)

    def _reason_to_stop(self, job: Unfinished) -> str:
        if self.orphaned is not Orphaned.finish:
            return f"--orphaned {self.orphaned}"
        if not job.running:
            return "nobody waits for its turn"
        if job.without_items:
            return "it waits for items, and nobody gives it any"
        counter, since = self._counters.get(job.job_id, (-1, 0.0))
        if counter != job.counter:
            self._counters[job.job_id] = (job.counter, time.monotonic())
            return ""
        still = time.monotonic() - since
        return f"it has not advanced for {still:.0f} s" if still > self.after_s else ""
