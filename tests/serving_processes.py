"""Real daemon processes for tests: started on a free port, always ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.client import DaemonClient
from repsearch.rpc.v1 import jobs_pb2

ROOT = Path(__file__).resolve().parent.parent


class DaemonProcess:
    """A daemon of `tests.serving_daemon`, or of `module`; `address` is what it announced.

    warm: configuration of a run that is served, for a daemon whose compute processes start at once (`tests.warm_daemon`); it is a process
    group of its own, and can be killed whole and started anew.
    """

    def __init__(
        self, store: Path, *arguments: str, service: str = "searcher", module: str = "tests.serving_daemon", warm: Path | None = None
    ) -> None:
        self.service, self.store, self.log_path = service, store, store.parent / f"{store.name}-{service}.log"
        self._command = [sys.executable, "-m", module, *([service] if module == "tests.serving_daemon" else []), "serve"]
        if warm is not None:
            self._command = [sys.executable, "-m", "tests.warm_daemon", str(warm), service, "serve", "--exit-with-stdin"]
        self._options = ["--store", str(store), *arguments]
        self._own_group, self._environment = warm is not None, dict(os.environ)
        self.log_path.write_bytes(b"")
        self._start("127.0.0.1:0")

    def _start(self, listen: str) -> None:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._command, "--listen", listen, *self._options],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=self._own_group,
            )
        assert self.process.stdout is not None and self.process.stdin is not None
        line = self.process.stdout.readline()
        self.ready = json.loads(line) if line else {}
        self.address = self.ready.get("address", "")

    def kill_all(self) -> None:
        """SIGKILL its process group: the daemon and all it has started."""
        assert self._own_group
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(20)

    def start_anew(self) -> None:
        """Start it again at its address, once it has ended."""
        address = self.address
        self.close()
        self._start(address)
        assert self.address == address, self.log()

    def client(self, **bounds: float) -> DaemonClient:
        client = DaemonClient(self.address, self.service, **bounds)
        client.connect()
        return client

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 20.0) -> int:
        return self.process.wait(timeout)

    def log(self) -> str:
        return self.log_path.read_text()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(20)
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()


@contextmanager
def daemon(store: Path, *arguments: str, **options: str) -> Iterator[DaemonProcess]:
    process = DaemonProcess(store, *arguments, **options)
    try:
        yield process
    finally:
        process.close()


def request(request_id: str = "r1", *, run: str = "run", term: int = 1, path: str | None = None, **config: object) -> jobs_pb2.StartRequest:
    """A check request whose job is chosen by `config` (see `serving_jobs`)."""
    message = jobs_pb2.StartRequest(request_id=request_id, run_id=run, term=term, run_path=run if path is None else path)
    message.config_json = json.dumps(config)
    message.check.SetInParent()
    return message


def finish(client: DaemonClient, job_id: str) -> jobs_pb2.Job:
    """Watch the job to its end."""
    return list(client.watch(job_id))[-1].state


def until(condition: Callable[[], bool], timeout: float = 15.0) -> None:
    """Wait for something another process does; fail if it does not come."""
    pause = threading.Event()
    for _ in range(int(timeout / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError("it did not happen in time")


def alive(pid: int) -> bool:
    """Whether process `pid` runs; a zombie does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
