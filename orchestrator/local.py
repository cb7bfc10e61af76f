"""Local daemons: separate processes that this orchestrator starts and always stops.

A daemon lives as long as the pipe to its stdin: it ends with the orchestrator even when that is killed. It has its own process group,
so that Ctrl-C reaches the orchestrator alone, which then stops the daemons itself. One that ends meanwhile is started anew at its address.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from orchestrator.roster import GoneError
from repsearch.config import RunConfig
from repsearch.errors import DaemonError

READY_S = 120.0
"""Seconds a daemon may take to start; importing torch from a cold disk is most of it."""
STOP_S = 5.0
"""Seconds a daemon may take to stop before it is killed."""
RESTARTS = 3
"""Times that a daemon whose process has ended is started anew; what ends it more often than that will end it again."""
LOGS = "logs"
_TAIL_LINES = 15


@dataclass(frozen=True, kw_only=True)
class LocalSpec:
    """A daemon to start: service "searcher" or "learner", its number among those of its service, torch device, CPU threads."""

    service: str
    number: int
    device: str
    threads: int


def local_specs(config: RunConfig) -> list[LocalSpec]:
    """Return the daemons to start for `config`: those it gives no address for."""
    specs = []
    if not config.searcher.addresses:
        searcher = config.searcher
        specs = [
            LocalSpec(service="searcher", number=number, device=searcher.device, threads=searcher.threads)
            for number in range(searcher.count)
        ]
    if not config.learner.address:
        specs.append(LocalSpec(service="learner", number=0, device=config.learner.device, threads=config.learner.threads))
    return specs


class LocalDaemons:
    """The local daemons of a run: started together on entering the context, stopped on leaving it, whatever happens.

    addresses: of the searchers, and of the learner, in the order of `specs`. root: folder of their logs. store: their `--store`, by default
    the same.
    """

    def __init__(self, specs: Sequence[LocalSpec], root: Path, *, store: str = "") -> None:
        self._specs = specs
        self._root, self._store = root, store or str(root)
        self._daemons: list[_Daemon] = []
        self._lock = threading.Lock()
        self._stopped = False

    def __enter__(self) -> Self:
        try:
            for spec in self._specs:
                self._daemons.append(_Daemon(spec, self._root, self._store))
            deadline = time.monotonic() + READY_S
            for daemon in self._daemons:
                daemon.wait_ready(deadline)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def addresses(self, service: str) -> list[str]:
        """Return the addresses of the daemons of `service`."""
        return [daemon.address for daemon in self._daemons if daemon.spec.service == service]

    def started_anew(self, address: str) -> str:
        """Start the daemon at `address` anew if its process has ended, without waiting for it to be ready; return what happened.

        "" if nothing did: it runs, or is not ours. Raises `GoneError` if that was done `RESTARTS` times. In any thread.
        """
        with self._lock:
            for number, daemon in enumerate(self._daemons):
                if daemon.address != address or daemon.process.poll() is None:
                    continue
                ended = f"its process, {daemon.process.pid}, has ended with code {daemon.process.returncode}"
                if self._stopped or daemon.restarts == RESTARTS:
                    raise GoneError(f"{address}: {ended}, as those before it, {daemon.restarts + 1} in all; its log is {daemon.log}")
                self._daemons[number] = daemon = daemon.anew()
                return f"{ended}; process {daemon.process.pid} was started in its place, {daemon.restarts} of {RESTARTS} times"
        return ""

    def processes(self) -> list[tuple[str, int]]:
        """Return service and address, and process id, of every daemon."""
        return [(f"{daemon.spec.service} {daemon.address}", daemon.process.pid) for daemon in self._daemons]

    def stop(self) -> None:
        """Stop every daemon: SIGTERM and the end of its stdin, then after `STOP_S` seconds SIGKILL."""
        with self._lock:
            self._stopped = True
        for daemon in self._daemons:
            daemon.terminate()
        deadline = time.monotonic() + STOP_S
        for daemon in self._daemons:
            daemon.reap(deadline)
        self._daemons.clear()


class _Daemon:
    """One daemon process; `address` is set by `wait_ready`. restarts: how many had its place before."""

    def __init__(self, spec: LocalSpec, root: Path, store: str, *, address: str = "", restarts: int = 0) -> None:
        self.spec, self.address, self.restarts = spec, address, restarts
        self._root, self._store = root, store
        logs = root / LOGS
        logs.mkdir(parents=True, exist_ok=True)
        self.log = logs / f"{spec.service}-{os.getpid()}-{spec.number}.log"
        command = [sys.executable, "-m", spec.service, "serve", "--listen", address or "127.0.0.1:0", "--store", store]
        command += ["--device", spec.device, "--threads", str(spec.threads), "--exit-with-stdin"]
        with self.log.open("ab" if restarts else "wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self, deadline: float) -> None:
        """Read the daemon's line; raises `DaemonError` with the end of its log if it does not come by `deadline` (monotonic)."""
        assert self.process.stdout is not None
        line = _read_line(self.process.stdout, deadline)
        try:
            self.address = str(json.loads(line)["address"])
        except (ValueError, KeyError, TypeError):
            raise DaemonError(self._failure(deadline)) from None

    def _failure(self, deadline: float) -> str:
        if time.monotonic() >= deadline:
            what = f"did not say that it is ready within {READY_S:.0f} s"
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S)
            what = f"did not start (exit code {self.process.returncode})"
        tail = "\n".join(f"  {line}" for line in self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
        return f"the local {self.spec.service} daemon {what}; its log, {self.log}, ends:\n{tail}"

    def anew(self) -> _Daemon:
        """Start it again at its address, once it has ended."""
        self.terminate()
        self.reap(time.monotonic())
        return _Daemon(self.spec, self._root, self._store, address=self.address, restarts=self.restarts + 1)

    def terminate(self) -> None:
        """Ask the process, if it is still there, to end; nobody waits for its running job, so it need not be finished."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.stdin is not None
        self.process.stdin.close()

    def reap(self, deadline: float) -> None:
        """Wait for the end until `deadline` (monotonic), then kill; close the pipes."""
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def _read_line(stream: IO[Any], deadline: float) -> bytes:
    # A bounded readline: the pipe is read as it fills, up to the first line end, the end of the stream or the deadline.
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return b""
            part = os.read(stream.fileno(), 4096)
            if not part:
                return b""
            line += part
    return line
