"""The compute process: runs one job after another for its daemon, and dies with it.

The main thread runs jobs; a second thread reads commands, so that a cancellation is seen at the job's next safe point. The end of the
socket ends the process; PR_SET_PDEATHSIG ends it also while a C call holds the GIL. Signals that a terminal or a service manager sends
to the whole group are the daemon's to act on, and are ignored here.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, cast

from repsearch.errors import DaemonError, JobError, RepSearchError
from repsearch.rpc.v1 import compute_pb2, jobs_pb2
from repsearch.serving import devices, framing, logs
from repsearch.serving.jobs import MAX_POINTS, Arrival, JobCancelled, JobFunction
from repsearch.serving.places import Place, place

PROGRESS_S = 0.1  # progress is sent at most this often
_PR_SET_PDEATHSIG = 1
log = logging.getLogger("compute")


class Context:
    """The `JobContext` of one job: reports go to the daemon, `cancel` is set by the thread that reads commands."""

    def __init__(self, job_id: str, connection: socket.socket, device: str, threads: int, store_root: Place) -> None:
        self.device, self.threads, self.store_root = device, threads, store_root
        self.cancelled = threading.Event()
        self.log: dict[str, Any] = {}
        self._job_id, self._connection = job_id, connection
        self._progress = jobs_pb2.Progress()
        self._points = 0
        self._sent_at = 0.0
        self._arrivals: queue.SimpleQueue[Arrival | None] = queue.SimpleQueue()
        self._arrived = 0

    def progress(self, done: int, total: int, *, unit: str, text: str = "", search: jobs_pb2.SearchState | None = None) -> None:
        counter = self._progress.counter + 1
        self._progress = jobs_pb2.Progress(counter=counter, done=done, total=total, unit=unit, text=text, search=search)
        now = time.monotonic()
        if done >= total or now - self._sent_at >= PROGRESS_S:
            self._sent_at = now
            self.flush()

    def points(self, points: Sequence[tuple[str, int, float]]) -> None:
        self._points += len(points)
        if self._points > MAX_POINTS:
            raise JobError(f"the job reported more than {MAX_POINTS} points; report fewer keys or steps")
        if points:
            message = jobs_pb2.Points(points=[jobs_pb2.Point(key=key, step=step, value=value) for key, step, value in points])
            framing.send(self._connection, compute_pb2.Report(job_id=self._job_id, points=message))

    def check(self) -> None:
        if self.cancelled.is_set():
            raise JobCancelled(self._job_id)

    def items(self) -> Iterator[Arrival]:
        while True:
            arrival = self._arrivals.get()
            self.check()
            assert arrival is not None
            if arrival.item.WhichOneof("kind") == "end":
                return
            logs.set_context({**self.log, **logs.item_context(arrival.item)})
            yield arrival

    def item_done(self, done: jobs_pb2.ItemDone) -> None:
        framing.send(self._connection, compute_pb2.Report(job_id=self._job_id, item_done=done))

    def arrive(self, item: jobs_pb2.Item) -> None:
        """Take an item; called by the thread that reads commands."""
        self._arrived += 1
        self._arrivals.put(Arrival(self._arrived, item, time.monotonic()))

    def cancel(self) -> None:
        """Have the job stop at its next safe point; called by the thread that reads commands."""
        self.cancelled.set()
        self._arrivals.put(None)

    def flush(self) -> None:
        """Send the newest progress."""
        if self._progress.counter:
            framing.send(self._connection, compute_pb2.Report(job_id=self._job_id, progress=self._progress))


class Compute:
    """Serves `RunJob` commands from `connection` with `function` until the daemon is gone."""

    def __init__(self, connection: socket.socket, function: JobFunction, device: str, threads: int, store_root: Place) -> None:
        self._connection, self._function = connection, function
        self._device, self._threads, self._store_root = device, threads, store_root
        self._jobs: queue.SimpleQueue[tuple[compute_pb2.RunJob, Context]] = queue.SimpleQueue()
        self._contexts: dict[str, Context] = {}

    def serve(self) -> None:
        """Run jobs for ever; the reading thread ends the process."""
        threading.Thread(target=self._read, name="commands", daemon=True).start()
        while True:
            job, context = self._jobs.get()
            logs.set_context(context.log)
            outcome = run(self._function, job.request, context)
            logs.set_context({})
            context.flush()
            self._contexts.pop(job.job_id, None)
            framing.send(self._connection, compute_pb2.Report(job_id=job.job_id, outcome=outcome))

    def _read(self) -> None:
        while (command := framing.receive(self._connection, compute_pb2.Command)) is not None:
            kind = command.WhichOneof("kind")
            if kind == "run":
                context = Context(command.run.job_id, self._connection, self._device, self._threads, self._store_root)
                context.log = logs.context_of(command.run.job_id, command.run.request)
                self._contexts[command.run.job_id] = context
                self._jobs.put((command.run, context))
            elif kind == "item":
                if (fed := self._contexts.get(command.item.job_id)) is not None:
                    fed.arrive(command.item.item)
            elif (running := self._contexts.get(command.cancel)) is not None:
                running.cancel()
        os._exit(0)  # the daemon is gone; the main thread may be in the middle of a job


def run(function: JobFunction, request: jobs_pb2.StartRequest, context: Context) -> compute_pb2.Outcome:
    """Run one job to its outcome; every failure of it becomes one."""
    try:
        result = function(request, context)
    except JobCancelled:
        return compute_pb2.Outcome(state=jobs_pb2.JOB_STATE_CANCELLED)
    except (Exception, SystemExit) as error:
        log.error("job %s failed: %s: %s", request.request_id, type(error).__name__, error)
        return compute_pb2.Outcome(state=jobs_pb2.JOB_STATE_FAILED, failure=failure(error))
    outcome = compute_pb2.Outcome(state=jobs_pb2.JOB_STATE_SUCCEEDED, dataset_digest=result.dataset_digest)
    if result.path:
        outcome.result.CopyFrom(jobs_pb2.Reference(path=result.path, digest=result.digest))
    return outcome


def failure(error: BaseException) -> jobs_pb2.Failure:
    """Return the message for `error`; errors that a user can act on need no traceback."""
    trace = "" if isinstance(error, RepSearchError) else "".join(traceback.format_exception(error))
    return jobs_pb2.Failure(kind=type(error).__name__, message=str(error) or type(error).__name__, traceback=trace)


def load(path: str) -> JobFunction:
    """Return the job function that `module:attribute` names; DaemonError if it cannot be imported."""
    module, _, attribute = path.partition(":")
    try:
        return cast(JobFunction, getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise DaemonError(f"job function {path!r} cannot be imported: {error}") from error


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent's spawning thread ends; exit if process `parent` is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def main() -> int:
    """Entry point of `python -m repsearch.serving.compute`; only `supervisor` calls it."""
    parser = argparse.ArgumentParser()
    for name in ("--service", "--job-function", "--device", "--store", "--log-format", "--incarnation"):
        parser.add_argument(name, required=True)
    for name in ("--socket", "--parent", "--threads"):
        parser.add_argument(name, type=int, required=True)
    options = parser.parse_args()
    die_with_parent(options.parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logs.configure(options.service, options.log_format, options.incarnation)
    connection = socket.socket(fileno=options.socket)
    try:
        function = load(options.job_function)
        name = devices.describe(options.device)
        devices.limit_threads(options.threads)
    except Exception as error:
        framing.send(connection, compute_pb2.Report(refused=failure(error)))
        return 1
    hello = compute_pb2.Hello(pid=os.getpid(), device=options.device, device_name=name)
    framing.send(connection, compute_pb2.Report(hello=hello))
    Compute(connection, function, options.device, options.threads, place(options.store)).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
