"""Runs killed at a failpoint and resumed: a tiny run of either kind, daemons that live on, and what must be the same in the end."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.journal import read_journal
from orchestrator.rounds import load_reports
from orchestrator.verify import verify
from repsearch.failpoints import TRACE, VARIABLE
from store import open_store
from tests.forking import Orchestrators
from tests.serving_processes import DaemonProcess
from tests.serving_proxy import Proxy

CONFIG = """
[run]
root = "{root}"
[dataset]
name = "digits"
train = 50
validation = 10
test = 10
[network]
name = "convnet"
width = 8
blocks = 1
convolutions = 2
[search]
layers = [0]
archive = 1
compiled = false
[search.strategy]
name = "evolution"
population = 4
parents = 2
explorers = 1
refiners = 1
generations = [1]
strength = [0.3]
boost = [2.0]
blur_passes = [0]
noise_rows = 512
[learn]
start = "continue"
epochs = 2
batch_size = 10
keep_checkpoints = 1
[rounds]
count = 4
examples_per_round = 20
keep.rounds = 2
[searcher]
addresses = ["{searcher}"]
shard_examples = 10
[learner]
address = "{learner}"
[tracking]
enabled = false
"""

KINDS = {
    # An archive keeps old rounds for longer than these runs last, so only one kind has it: the other removes some.
    "closed": ("learn.snapshots=1", "search.archive=0"),
    "streaming": ("rounds.policy={name='streaming', max_staleness=0, commit_seconds=0}",),
}
"""Settings of a run of each kind."""


class Bench:
    """A searcher and a learner that serve run after run below `root`, and a quick way to start orchestrators.

    proxied: calls of the daemons go through `proxies`, of the searcher and of the learner.
    """

    def __init__(self, root: Path, *, proxied: bool = False) -> None:
        self.root, self.output, self.config = root, root.parent / "output.txt", root.parent / "tiny.toml"
        self.proxies: list[Proxy] = []
        self._proxied, self._runs, self._stack = proxied, 0, ExitStack()

    def __enter__(self) -> Bench:
        with ExitStack() as stack:
            self.root.mkdir(parents=True)
            self._write_config(["127.0.0.1:1"] * 2)
            self.daemons = [self._daemon(service, stack) for service in ("searcher", "learner")]
            if self._proxied:
                self.proxies = [Proxy(daemon.address) for daemon in self.daemons]
                for proxy in self.proxies:
                    stack.callback(proxy.close)
            self._write_config([end.address for end in self.proxies or self.daemons])
            self.orchestrators = stack.enter_context(Orchestrators(self.config))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, kind: str, *, settings: Sequence[str] = (), **environment: str) -> tuple[Path, int]:
        """Run a run of `kind`; return its folder, and the orchestrator's exit code."""
        return self.repeat(kind, self.next_run(kind), settings=settings, **environment)

    def repeat(self, kind: str, run: Path, *, settings: Sequence[str] = (), **environment: str) -> tuple[Path, int]:
        """Start the run in `run`."""
        self.begin(kind, run, settings, **environment)
        return run, self.orchestrators.wait()

    def resume(self, run: Path, **environment: str) -> int:
        """Resume a run; return the orchestrator's exit code."""
        self.begin("", run, resume=True, **environment)
        return self.orchestrators.wait()

    def begin(self, kind: str, run: Path, settings: Sequence[str] = (), *, resume: bool = False, **environment: str) -> int:
        """Start an orchestrator, to be waited for; return its process id."""
        self.output.unlink(missing_ok=True)
        given = [part for setting in (*KINDS.get(kind, ()), *settings) for part in ("--set", setting)]
        arguments = ["resume", str(run)] if resume else ["run", str(self.config), "--name", run.name, *given]
        return self.orchestrators.start(*arguments, output=self.output, **environment)

    def next_run(self, kind: str) -> Path:
        """Return the folder of a run that is not there yet."""
        self._runs += 1
        return self.root / f"{kind}-{self._runs}"

    def trace(self, program: str) -> Path:
        """File in which `program` notes where it comes by; an orchestrator only if it is told to."""
        return self.root.parent / f"{program}.trace"

    def arm(self, program: str, spec: str) -> Path:
        """Arm a daemon; return the file that is gone once its process has killed itself."""
        path = self.root.parent / f"{program}.arm"
        path.with_suffix(".new").write_text(spec)
        path.with_suffix(".new").rename(path)
        return path

    def calm(self) -> None:
        """Take back what was armed and held, and start the daemons that ended."""
        for program in ("searcher", "learner"):
            (self.root.parent / f"{program}.arm").unlink(missing_ok=True)
        for proxy in self.proxies:
            proxy.release()
        for daemon in self.daemons:
            if daemon.process.poll() is not None:
                daemon.start_anew()

    def _daemon(self, service: str, stack: ExitStack) -> DaemonProcess:
        armed = {VARIABLE: f"@{self.root.parent / f'{service}.arm'}", TRACE: str(self.trace(service))}
        os.environ |= armed
        try:
            return stack.enter_context(closing(DaemonProcess(self.root, service=service, warm=self.config)))
        finally:
            for name in armed:
                del os.environ[name]

    def _write_config(self, addresses: Sequence[str]) -> None:
        self.config.write_text(CONFIG.format(root=self.root, searcher=addresses[0], learner=addresses[1]))


@dataclass(frozen=True)
class Facts:
    """What a run came to, but for times and attempts."""

    figures: dict[tuple[int, str], float]
    points: dict[tuple[int, str, int], float]
    networks: dict[int, tuple[str, ...]]


def facts(run: Path) -> Facts:
    """Return what the run in `run` came to; its curves have no point twice."""
    store = open_store(run)
    reports = load_reports(store)
    points = [record for record in read_journal(run) if record["kind"] == "point"]
    named = {(record["round"], record["key"], record["step"]): record["value"] for record in points}
    assert len(named) == len(points), "a point is there twice"
    rounds = [record["round"] for record in read_journal(run) if record["kind"] == "round_finished"]
    assert rounds == list(range(len(reports))), "the journal has not every round once"
    return Facts(
        {(report.round, name): value for report in reports for name, value in report.metrics.items() if not timed(name)},
        {name: value for name, value in named.items() if not timed(name[1])},
        {report.round: digests(store, report.learned) for report in reports[-2:]},
    )


def timed(name: str) -> bool:
    """Whether a figure depends on how fast the machine was."""
    return "seconds" in name or name.startswith(("search/live", "search/after_"))


def digests(store: Any, reference: Any) -> tuple[str, ...]:
    """Digests of a group's arrays, which do not depend on who wrote it and when."""
    arrays = store.manifest(reference["path"]).arrays
    return tuple(digest for name in sorted(arrays) for digest in arrays[name].chunk_digests)


def problems(bench: Bench, run: Path, expected: Facts) -> list[str]:
    """Return in what a run that came to its end differs from one that was left alone."""
    found = [finding["problem"] for finding in verify(run)]
    try:
        came_to = facts(run)
    except AssertionError as error:
        return [*found, str(error)]
    found += ["other networks"] if came_to.networks != expected.networks else []
    for name in ("figures", "points"):
        found += [f"other {name}: {key}" for key in differing(getattr(came_to, name), getattr(expected, name))]
    found += [f"left over: {path.relative_to(run)}" for path in leftovers(run)]
    return found


def differing(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> list[Any]:
    """Return the keys whose values differ by more than the order of a sum."""
    missing = set(ours) ^ set(theirs)
    return sorted(missing | {key for key in set(ours) & set(theirs) if not math.isclose(ours[key], theirs[key], rel_tol=1e-5)})


def leftovers(run: Path) -> list[Path]:
    """Return what is in a run's folder and of no use: temporary files, and groups that were never committed."""
    partial = [path for path in run.rglob("*") if path.name.endswith((".partial", ".new", ".part"))]
    arrays = {path.parent for path in run.rglob("zarr.json")}
    groups = [folder for folder in arrays if folder.parent not in arrays]
    return [*partial, *(folder for folder in groups if not (folder / "MANIFEST.json").exists())]


def reached(trace: Path) -> Counter[str]:
    """Return how often each place was come by."""
    return Counter(trace.read_text().split()) if trace.exists() else Counter()
