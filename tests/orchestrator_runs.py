"""Real runs for tests: a tiny configuration, orchestrators as processes, and the digests of what a run learned."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from store import layout, open_store

TINY = """
[run]
root = "{root}"
[dataset]
name = "digits"
train = 200
validation = 50
test = 100
[network]
name = "convnet"
width = 8
blocks = 2
convolutions = 2
[search]
layers = [0, 1, "logits"]
[search.strategy]
name = "evolution"
population = 8
parents = 2
explorers = 3
refiners = 3
generations = [6, 6, 2]
strength = [0.3, 0.2, 0.1]
boost = [5.0, 3.0, 1.0]
blur_passes = [1, 0, 0]
[learn]
epochs = 6
batch_size = 50
[rounds]
count = 2
[searcher]
shard_examples = 64
[tracking]
enabled = false
"""
DEADLINE_S = 300.0


def write_config(folder: Path) -> Path:
    """Write the tiny configuration, whose runs lie in `folder`/runs, and return its path."""
    path = folder / "tiny.toml"
    path.write_text(TINY.format(root=folder / "runs"))
    return path


class Orchestrator:
    """`python -m orchestrator ARGUMENTS` as a process; `lines` has what it printed, once it ended."""

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self._output = folder / f"output-{time.monotonic_ns()}.txt"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", *arguments], cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def text(self) -> str:
        """What it has printed so far, on both streams."""
        return self._output.read_text()

    def wait(self) -> int:
        """Return its exit code."""
        return self.process.wait(DEADLINE_S)

    def pid_of(self, service: str) -> int:
        """Process id of the local daemon of `service`, which it has announced."""
        match = re.search(rf"started {service} \S+, process (\d+)", self.text())
        assert match is not None, self.text()
        return int(match[1])

    def await_file(self, folder: Path, pattern: str) -> None:
        """Return when a file of `folder` matches `pattern`; fails if the process ends before."""
        deadline = time.monotonic() + DEADLINE_S
        while not any(folder.glob(pattern)):
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.002)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)


@contextlib.contextmanager
def orchestrator(*arguments: str, folder: Path) -> Iterator[Orchestrator]:
    """An orchestrator, killed at the end of the context if it is still there."""
    started = Orchestrator(arguments, folder)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait()


def complete(*arguments: str, folder: Path) -> str:
    """Run an orchestrator to its end, which must be a success; return what it printed."""
    with orchestrator(*arguments, folder=folder) as process:
        code = process.wait()
        assert code == 0, process.text()
        return process.text()


def learned(run: Path, rounds: int = 2) -> list[tuple[str, ...]]:
    """Digests of the parameters that each round of `run` learned: the same for the same bits."""
    store = open_store(run)
    found = []
    for round in range(rounds):
        path = store.read_document(layout.report_document(round))["report"]["learned"]["path"]
        arrays = store.manifest(path).arrays
        found.append(tuple(digest for name in sorted(arrays) for digest in arrays[name].chunk_digests))
    return found


def gone(pid: int, within_s: float = 10.0) -> bool:
    """Whether process `pid` ends within `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False
