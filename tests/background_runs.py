"""Runs on daemons that stay: the orchestrator works on a thread of the test's own process, which is much quicker to start."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console

from orchestrator import execution
from orchestrator.journal import read_journal
from orchestrator.progress import PlainDisplay
from orchestrator.steering import ask
from tests.orchestrator_runs import write_config
from tests.serving_processes import DaemonProcess

OPTIONS = ("--device", "cpu", "--threads", "1")
WAIT_S = 240.0


def start_searcher(root: Path, *arguments: str) -> DaemonProcess:
    return DaemonProcess(root, *OPTIONS, *arguments, module="searcher")


@contextmanager
def daemons(root: Path, searchers: int) -> Iterator[tuple[list[DaemonProcess], DaemonProcess]]:
    """Searchers and a learner that serve the runs in `root`, started together and ended whatever happens."""
    root.mkdir(parents=True, exist_ok=True)
    roots = [root.with_name(f"{root.name}-{number}") for number in range(searchers)]
    for other in roots:
        other.symlink_to(root)  # a log of its own for each
    with ThreadPoolExecutor(searchers + 1) as pool:
        learner = pool.submit(DaemonProcess, root, *OPTIONS, module="learner", service="learner")
        starting = [pool.submit(start_searcher, other) for other in roots]
        started = [future.result() for future in starting]
    try:
        yield started, learner.result()
    finally:
        for process in (*started, learner.result()):
            process.close()


class BackgroundRun:
    """An orchestrator on a thread: `perform(display)` is a call such as `execution.start`. A context; leaving it waits for the end."""

    def __init__(self, folder: Path, perform: Callable[[PlainDisplay], object]) -> None:
        self.folder, self.error = folder, None
        self._perform = perform
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._thread.join(WAIT_S if error is None else 0.1)

    def _work(self) -> None:
        try:
            self._perform(PlainDisplay(Console(quiet=True)))
        except BaseException as error:
            self.error = error

    def stop(self, *, now: bool = False) -> None:
        """Ask the run to stop."""
        ask(self.folder, "stop_now" if now else "stop")

    def end(self) -> BaseException | None:
        """Wait for the end and return what it raised."""
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the run did not end in time"
        return self.error

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for `condition`; fails if the run ends before it holds."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert self._thread.is_alive(), f"the run has ended: {self.error}"
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.01)

    def until_file(self, pattern: str) -> None:
        self.until(lambda: any(self.folder.glob(pattern)))

    def until_incident(self, event: str, text: str = "", *, count: int = 1) -> None:
        """Wait for `count` incidents of this kind with `text` in the journal."""

        def there() -> bool:
            found = [record for record in read_journal(self.folder) if record["kind"] == "incident"]
            return sum(record["event"] == event and text in record["text"] for record in found) >= count

        self.until(there)


def run_on(root: Path, searchers: Sequence[DaemonProcess], learner: DaemonProcess, name: str, *settings: str) -> BackgroundRun:
    """The tiny run, on these daemons, as `name` in `root`; not begun yet."""
    addresses = json.dumps([process.address for process in searchers])
    values = [f"run.root={root}", f"searcher.addresses={addresses}", f"learner.address={learner.address}", *settings]
    prepared = execution.prepare(write_config(root.parent), values, name)
    return BackgroundRun(root / name, lambda display: execution.start(prepared, display))


def resumed(folder: Path) -> BackgroundRun:
    """The run in `folder`, resumed; not begun yet."""
    return BackgroundRun(folder, lambda display: execution.resume(folder, display))
