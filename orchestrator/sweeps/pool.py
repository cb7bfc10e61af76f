"""Worker processes: several runs at a time, each on daemons of its own that outlive it.

A worker has its own session, so that Ctrl-C reaches this process alone; it ends when the pipe to its stdin does.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from orchestrator.local import LOGS, STOP_S
from orchestrator.sweeps.worker import Request, Result, read_result
from repsearch.errors import JobError, from_kind


class Workers:
    """`count` workers whose runs lie below `root`, from entering the context to leaving it. Safe to use from several threads."""

    def __init__(self, count: int, root: Path) -> None:
        self._count, self._root = count, root
        self._stopped = False
        self._processes: list[_Process] = []
        self._idle: queue.Queue[_Process] = queue.Queue()

    def __enter__(self) -> Self:
        self._root.mkdir(parents=True, exist_ok=True)
        for number in range(self._count):
            self._processes.append(_Process(self._root, number))
            self._idle.put(self._processes[-1])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    @property
    def stopped(self) -> bool:
        """Whether the workers were told to end."""
        return self._stopped

    def stop(self) -> None:
        """End the workers, whatever they are doing; their runs can be gone on with."""
        self._stopped = True
        for process in self._processes:
            process.end()
        deadline = time.monotonic() + STOP_S
        for process in self._processes:
            process.reap(deadline)

    def run(self, request: Request) -> Result:
        """Return the result of a run, on the first worker that is free; raises the error it ended with."""
        if (found := read_result(Path(request.folder))) is not None:
            return found
        process = self._idle.get()
        try:
            if process.dead and not self._stopped:
                process = _Process(self._root, process.number)
                self._processes.append(process)
            return process.run(request)
        finally:
            self._idle.put(process)


class _Process:
    def __init__(self, root: Path, number: int) -> None:
        self.number, self._reading = number, False
        logs = root / LOGS
        logs.mkdir(parents=True, exist_ok=True)
        self._log = logs / f"worker-{os.getpid()}-{number}.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.sweeps.worker", str(root)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                text=True,
            )

    def run(self, request: Request) -> Result:
        line, self._reading = "", True
        try:
            self._stdin.write(json.dumps(asdict(request)) + "\n")
            self._stdin.flush()
            line = self._stdout.readline()
        except (OSError, ValueError):
            pass
        finally:
            self._reading = False
        if not line:
            raise JobError(f"the worker process {self._process.pid} ended; its log: {self._log}")
        answer = json.loads(line)
        if "error" in answer:
            raise from_kind(answer["error"]["kind"], answer["error"]["message"])
        return Result(**answer["result"])

    @property
    def dead(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def end(self) -> None:
        """Let the process end, whatever it is doing."""
        # Not by closing stdin, which would wait for a thread that writes to it.
        self._process.terminate()

    def reap(self, deadline: float) -> None:
        """Wait for the end until `deadline` (monotonic), then kill."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(OSError):
            self._stdin.close()
        if not self._reading:
            self._stdout.close()

    @property
    def _stdin(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _stdout(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout
