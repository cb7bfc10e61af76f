"""Keeps one compute process alive, feeds it the table's jobs and ends those it takes down with it.

The process is spawned, never forked from a process with gRPC threads. It is killed when a job does not stop within `CANCEL_S` of its
cancellation, and replaced after a failure that is not one of ours: a CUDA error, say, leaves the process unusable.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

from repsearch.errors import KINDS
from repsearch.rpc.v1 import compute_pb2, jobs_pb2
from repsearch.serving import framing, logs
from repsearch.serving.places import Place
from repsearch.serving.table import Table
from repsearch.serving.threads import thread_environment

CANCEL_S = 10.0  # a job has this long to reach a safe point after its cancellation
RESTART_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # wait before the n-th start in a row that failed
SEND_S = 10
log = logging.getLogger("supervisor")


@dataclass(frozen=True)
class Options:
    """What a compute process is started with."""

    service: str
    job_function: str
    device: str
    threads: int
    store_root: Place
    log_format: str
    incarnation: str = ""

    def command(self, connection: int) -> list[str]:
        """Return the command line of a process that talks on the descriptor `connection`."""
        named = {
            "service": self.service,
            "job-function": self.job_function,
            "device": self.device,
            "threads": self.threads,
            "store": self.store_root,
            "log-format": self.log_format,
            "incarnation": self.incarnation,
            "socket": connection,
            "parent": os.getpid(),
        }
        arguments = [f"--{name}={value}" for name, value in named.items()]
        return [sys.executable, "-P", "-m", "repsearch.serving.compute", *arguments]

    def environment(self) -> dict[str, str]:
        """Return this process's environment with its import path and the thread limits of the numerical libraries."""
        # -P keeps whatever folder we were started in from shadowing packages; what we can import ourselves stays importable.
        return {**os.environ, **thread_environment(self.threads), "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


class Process:
    """A compute process and the socket to it."""

    def __init__(self, options: Options) -> None:
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                options.command(theirs.fileno()),
                env=options.environment(),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,  # ours announces the address; theirs is log
                stderr=subprocess.STDOUT,
            )
        self.pid = self._process.pid
        self.welcomed = False  # it said hello
        self.used = False  # it was given a job
        self.released = False  # we end it, for its memory
        # A run command may be larger than the socket's buffer; a process that does not read it must not hold us up for ever.
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_S, 0))
        threading.Thread(target=self._relay, args=[options.log_format], name="relay", daemon=True).start()

    def send(self, command: compute_pb2.Command) -> None:
        """Send a command; a process that does not take it is killed, and its end shows to whoever receives."""
        try:
            framing.send(self._connection, command)
        except OSError as error:
            log.warning("compute process %d does not take commands (%s): killed", self.pid, error)
            self.kill()

    def receive(self) -> compute_pb2.Report | None:
        """Return the next report, or None when the process is gone."""
        return framing.receive(self._connection, compute_pb2.Report)

    def kill(self) -> None:
        """Send SIGKILL; nothing happens if it has ended."""
        self._process.kill()

    def reap(self) -> str:
        """Wait for the end and say how it came."""
        code = self._process.wait()
        self._connection.close()
        if code >= 0:
            return f"it exited with code {code}"
        name = signal.Signals(-code).name
        return f"it was ended by {name}" + (" (was memory short?)" if name == "SIGKILL" else "")

    def _relay(self, log_format: str) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                logs.relay(line.decode(errors="replace").rstrip("\n"), log_format)


class Supervisor:
    """Runs the compute process on a thread of its own. Connect `table` before `start`.

    `on_ready(hello)` is called whenever a process is ready, `on_gone(failure)` when it is gone, with the reason if it never was ready.
    """

    def __init__(
        self, options: Options, *, on_ready: Callable[[compute_pb2.Hello], None], on_gone: Callable[[jobs_pb2.Failure | None], None]
    ) -> None:
        self.table: Table
        self._options, self._on_ready, self._on_gone = options, on_ready, on_gone
        self._lock = threading.Lock()
        self._process: Process | None = None
        self._ready = False
        self._stopping = threading.Event()
        # PR_SET_PDEATHSIG of the process refers to the thread that spawned it, so this thread lives as long as we do.
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start the compute process and keep it alive."""
        self._thread.start()

    def ready(self) -> bool:
        """Whether a job can be run now."""
        return self._ready

    def stop(self) -> None:
        """Kill the compute process for good; a running job is cancelled."""
        with self._lock:
            self._stopping.set()
            if self._process is not None:
                self._process.kill()
        if self._thread.is_alive():
            self._thread.join()

    def pump(self) -> None:
        """Give the process a waiting job if it is ready and has none."""
        with self._lock:
            process = self._process
            if process is None or not self._ready:
                return
            job = self.table.take()
            if job is not None:  # sent with the lock held, so that its cancellation cannot overtake it
                log.info("job %s starts", job.job_id, extra=logs.context_of(job.job_id, job.request))
                process.used = True
                process.send(compute_pb2.Command(run=job))
                self._forward(process)

    def release(self) -> None:
        """Replace a process that was used and has nothing to do: its memory, on a device above all, is given back."""
        with self._lock:
            process = self._process
            if process is None or not self._ready or not process.used or self.table.running() is not None:
                return
            self._ready, process.released = False, True
        log.info("nobody has called for long: the compute process is replaced, which gives its memory back")
        process.kill()

    def forward(self) -> None:
        """Hand the items that were pushed on to the process."""
        with self._lock:
            if self._process is not None and self._ready:
                self._forward(self._process)

    def _forward(self, process: Process) -> None:
        # With the lock held: items keep their order, and none overtakes its job.
        for item in self.table.untold():
            process.send(compute_pb2.Command(item=item))

    def cancel(self, job_id: str) -> None:
        """Tell the running job to stop, and kill the process if it has not within `CANCEL_S`."""
        with self._lock:
            process = self._process
            if process is not None:
                process.send(compute_pb2.Command(cancel=job_id))
        if process is not None:
            timer = threading.Timer(CANCEL_S, self._enforce, [process, job_id])
            timer.daemon = True
            timer.start()

    def _enforce(self, process: Process, job_id: str) -> None:
        if self.table.cancelling(job_id):
            log.warning("job %s did not stop within %g s of its cancellation; its process is replaced", job_id, CANCEL_S)
            process.kill()

    def _run(self) -> None:
        failed = 0
        while not self._stopping.wait(RESTART_S[min(failed, len(RESTART_S) - 1)]):
            with self._lock:
                if self._stopping.is_set():
                    return
                process = self._process = Process(self._options)
            refusal = self._serve(process)
            with self._lock:
                self._ready, self._process = False, None
            died = jobs_pb2.Failure(kind="JobError", message=f"the compute process died: {process.reap()}")
            if process.released:
                self._on_gone(None)
            else:
                self._bury(died, None if process.welcomed else refusal or died)
            failed = 0 if process.welcomed else failed + 1

    def _bury(self, died: jobs_pb2.Failure, never_ready: jobs_pb2.Failure | None) -> None:
        """End the job that the process took along and, if none can be started, those that wait."""
        if self._stopping.is_set():
            return
        if never_ready is None:
            log.warning("%s", died.message)
        self._on_gone(never_ready)
        self.table.finish(compute_pb2.Outcome(state=jobs_pb2.JOB_STATE_FAILED, failure=died))
        if never_ready is not None:
            self.table.fail_waiting(never_ready)

    def _serve(self, process: Process) -> jobs_pb2.Failure | None:
        """Handle reports until the process is gone; return its reason if it refused to start."""
        refusal = None
        while (report := process.receive()) is not None:
            kind = report.WhichOneof("kind")
            if kind == "hello":
                self._welcome(process, report.hello)
            elif kind == "refused":
                refusal = report.refused
            elif kind == "progress":
                self.table.progress(report.progress)
            elif kind == "points":
                self.table.points(report.points)
            elif kind == "item_done":
                self.table.item_done(report.item_done)
            elif kind == "outcome":
                self._finish(process, report)
        return refusal

    def _welcome(self, process: Process, hello: compute_pb2.Hello) -> None:
        with self._lock:
            process.welcomed = self._ready = True
        self._on_ready(hello)
        self.pump()

    def _finish(self, process: Process, report: compute_pb2.Report) -> None:
        outcome = report.outcome
        log.info("job %s ends: %s", report.job_id, jobs_pb2.JobState.Name(outcome.state), extra={"job": report.job_id})
        unusable = outcome.state == jobs_pb2.JOB_STATE_FAILED and outcome.failure.kind not in KINDS
        if unusable:
            with self._lock:
                self._ready = False
        self.table.finish(outcome)
        if unusable:
            log.info("the compute process is replaced after %s", outcome.failure.kind)
            process.kill()
        else:
            self.pump()
