"""A searcher or a learner whose compute processes start at once: `python -m tests.warm_daemon CONFIG searcher serve ...`.

They are forked from a process that has imported everything, which a test that kills dozens of them cannot wait for; all else is as in
the daemon. CONFIG is of a run that the daemon is to serve.

    daemon --socket: command, environment, descriptor of the compute process's socket--> nursery --fork--> compute process
           <--process id, then exit code--
"""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from repsearch import failpoints
from repsearch.rpc.v1 import jobs_pb2
from repsearch.serving import compute, supervisor

ROOT = Path(__file__).resolve().parent.parent


class Nursery:
    """The process that compute processes are forked from; one lives at a time."""

    def __init__(self, config: str, service: str) -> None:
        self.connection, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "tests.warm_daemon", config, service, "nursery", str(theirs.fileno())]
            self.process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self.lines = self.connection.makefile("r")
        assert self.lines.readline() == "ready\n"

    def popen(self, command: list[str], *, env: dict[str, str], pass_fds: list[int], **_: Any) -> _Child:
        """Do what `subprocess.Popen` does for the supervisor."""
        reader, writer = os.pipe()
        socket.send_fds(self.connection, [b"{}\n"], [pass_fds[0], writer])
        os.close(writer)
        arguments = [word for word in command[command.index("repsearch.serving.compute") + 1 :] if not word.startswith("--parent=")]
        request = {"arguments": [*arguments, f"--parent={self.process.pid}"], "environment": env, "descriptor": pass_fds[0]}
        self.connection.sendall(json.dumps(request).encode() + b"\n")
        return _Child(int(self.lines.readline()), os.fdopen(reader, "rb"), self)


class _Child:
    """What the supervisor uses of a `subprocess.Popen`."""

    def __init__(self, pid: int, stdout: Any, nursery: Nursery) -> None:
        self.pid, self.stdout, self._nursery = pid, stdout, nursery
        self._code: int | None = None

    def kill(self) -> None:
        if self._code is None:
            os.kill(self.pid, 9)

    def wait(self) -> int:
        if self._code is None:
            self._code = int(self._nursery.lines.readline())
        return self._code


def nursery(config: str, service: str, descriptor: int) -> None:
    """Be the nursery."""
    compute.die_with_parent(os.getppid())
    connection = socket.socket(fileno=descriptor)
    warm_up(config, service)
    connection.sendall(b"ready\n")
    while True:
        data, descriptors, _, _ = socket.recv_fds(connection, 3, 2)
        if not data:
            return
        request = json.loads(connection.makefile("r").readline())
        child = os.fork()
        if child == 0:
            become(request, descriptors)
        for given in descriptors:
            os.close(given)
        connection.sendall(f"{child}\n".encode())
        connection.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())


def warm_up(config: str, service: str) -> None:
    """Import what jobs of the run in `config` need."""
    import torch
    import torch._dynamo  # an optimiser's first step imports it, which takes seconds

    from orchestrator.execution import prepare

    torch.set_num_threads(1)
    prepared = prepare(Path(config), [], None)
    request = jobs_pb2.StartRequest(config_json=prepared.main.config.model_dump_json())
    request.check.SetInParent()
    context = SimpleNamespace(device="cpu", threads=1, store_root=Path())
    compute.load(f"{service}.jobs:run_job")(request, context)  # type: ignore[arg-type]
    threads = {task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
    assert len(threads - {"jemalloc_bg_thd"}) == 1, f"threads that a fork would lose: {threads}"


def become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Be the compute process of `request`, to its end."""
    os.environ.update(request["environment"])
    os.dup2(descriptors[0], request["descriptor"])
    os.dup2(descriptors[1], 1)
    os.dup2(descriptors[1], 2)
    failpoints.rearm()
    sys.argv = ["compute", *request["arguments"]]
    os._exit(compute.main())


if __name__ == "__main__":
    config, service, *rest = sys.argv[1:]
    if rest[0] == "nursery":
        nursery(config, service, int(rest[1]))
    else:
        popen = Nursery(config, service).popen
        supervisor.subprocess = SimpleNamespace(  # type: ignore[assignment]
            Popen=popen, DEVNULL=subprocess.DEVNULL, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT
        )
        sys.argv = [service, *rest]
        runpy.run_module(service, run_name="__main__")
