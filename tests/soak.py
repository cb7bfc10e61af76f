"""A seeded nemesis against many small rounds: `python -m tests.soak [--rounds 200] [--seed N] [--out FOLDER]`.

While a run goes on, its processes are killed at random failpoints, paused, cut off and refused the disk, and its daemons killed whole and
started anew at their addresses; an orchestrator that ends is resumed, until the run is done. Then what must be true is checked
(`tests.failpoint_runs`: every round and point once, the figures and the bits of a run that was left alone, nothing left over; in MLflow
nothing twice), and that threads, descriptors and memory of the daemons did not grow. The seed decides what is done and in which order;
when it strikes depends on the machine too.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from orchestrator.rounds import load_reports
from orchestrator.searching import load_search
from orchestrator.tracking import sync, tracking_uri
from orchestrator.tracking.connect import connect
from repsearch.failpoints import VARIABLE
from store import open_store
from tests.failpoint_runs import Bench, facts, leftovers, problems

DEEDS = (*("kill", "pause", "cut", "hold", "refuse_disk") * 4, "kill_daemon")
"""What the nemesis does, over and over, each time in another order; a daemon takes seconds to start, so it is killed less often."""
RESUMES = 40
"""Times that a run is resumed before it is left to itself."""
STANDSTILL_S = 240.0
"""Seconds after which an orchestrator that does not end is a failure."""
POINTS = {
    "orchestrator": ("journal.append.before", "journal.append.after", "store.create.written", "store.replace.written", "job.start.after"),
    "searcher": ("searcher.shard.before", "searcher.shard.after", "store.create.written", "store.replace.written", "store.pack.after"),
    "learner": ("learner.network.before", "learner.network.after", "store.group.rows", "store.delete.unreadable", "learner.state.after"),
}
"""Where each program is killed."""
GROWTH = {"threads": (1.0, 12), "descriptors": (1.0, 24), "rss_mb": (1.5, 80)}
"""Most that a daemon's figure may be at the end: so many times, and so much more than, what it was in the first half."""


@dataclass
class Nemesis:
    """Does harm to the processes of `bench` until `over` is set. done: what was done, in order; to_come: what is done next."""

    bench: Bench
    rng: random.Random
    orchestrator: int
    done: list[str]
    to_come: list[str]
    over: threading.Event = field(default_factory=threading.Event)

    def rage(self) -> None:
        """Do one thing after another, each as often as the others but in no order."""
        while not self.over.wait(self.rng.uniform(0.1, 0.8)):
            if not self.to_come:
                self.to_come += self.rng.sample(DEEDS, len(DEEDS))
            deed = self.to_come.pop()
            self.done.append(deed)
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                getattr(self, deed)()

    def kill_daemon(self) -> None:
        """Kill a daemon with all its processes, of one service and then of the other, and start it again at its address."""
        daemon = self.bench.daemons[self.done.count("kill_daemon") % len(self.bench.daemons)]
        daemon.kill_all()
        time.sleep(self.rng.uniform(0.0, 1.0))
        daemon.start_anew()

    def kill(self) -> None:
        """Have what computes in a daemon kill itself at a failpoint soon."""
        program = self.rng.choice(["searcher", "learner"])
        self.bench.arm(program, f"{self.rng.choice(POINTS[program])}@{self.rng.randint(1, 6)}")

    def pause(self) -> None:
        """Stop a process for a while."""
        pid = self.rng.choice([self.orchestrator, *self.processes()])
        os.kill(pid, signal.SIGSTOP)
        time.sleep(self.rng.uniform(0.05, 1.0))
        os.kill(pid, signal.SIGCONT)

    def cut(self) -> None:
        """Break all connections to a daemon."""
        self.rng.choice(self.bench.proxies).cut()

    def hold(self) -> None:
        """Let nothing through to a daemon for a while."""
        proxy = self.rng.choice(self.bench.proxies)
        proxy.hold()
        time.sleep(self.rng.uniform(0.1, 1.5))
        proxy.release()

    def refuse_disk(self) -> None:
        """Have a process write no file beyond some bytes for a while, as on a full disk."""
        pid = self.rng.choice([self.orchestrator, *self.processes()])
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (self.rng.choice([0, 100, 5000]), before[1]))
        time.sleep(self.rng.uniform(0.05, 0.5))
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    def processes(self) -> list[int]:
        """Process ids of the daemons and of what computes for them."""
        daemons = [psutil.Process(daemon.process.pid) for daemon in self.bench.daemons]
        # In between is the process that compute processes are forked from, which is of the tests and is let alone.
        computing = [process for daemon in daemons for between in daemon.children() for process in between.children()]
        return [process.pid for process in (*daemons, *computing)]


@dataclass
class Measurements:
    """Figures of the daemons over time: (seconds, daemon, threads, descriptors, megabytes of memory)."""

    bench: Bench
    rows: list[tuple[float, str, int, int, float]] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    """Of each row the process, which a daemon that was killed has another of."""
    begun: float = field(default_factory=time.monotonic)

    def take(self) -> None:
        """Measure now."""
        for daemon in self.bench.daemons:
            process = psutil.Process(daemon.process.pid)
            figures = (process.num_threads(), process.num_fds(), process.memory_info().rss / 1e6)
            self.rows.append((time.monotonic() - self.begun, daemon.service, *figures))
            self.pids.append(daemon.process.pid)

    def growth(self) -> list[str]:
        """Return what grew beyond its bound."""
        found = []
        for pid in dict.fromkeys(self.pids):
            rows = [row[2:] for row, of in zip(self.rows, self.pids, strict=True) if of == pid]
            service, half = self.rows[self.pids.index(pid)][1], max(1, len(rows) // 2)
            for column, (name, (factor, more)) in enumerate(GROWTH.items()):
                before, after = (max(row[column] for row in part) for part in (rows[:half], rows[-1:]))
                if after > before * factor + more:
                    found.append(f"{service}: {name} grew from {before:g} to {after:g}")
        return found

    def write(self, folder: Path) -> None:
        """Write `soak.csv` and `soak.png`."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "soak.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("seconds", "daemon", *GROWTH), *self.rows])
        figure = Figure(figsize=(9, 3), layout="constrained")
        FigureCanvasAgg(figure)
        for column, (axes, name) in enumerate(zip(figure.subplots(1, len(GROWTH)), GROWTH, strict=True)):
            for service in ("searcher", "learner"):
                rows = [row for row in self.rows if row[1] == service]
                axes.plot([row[0] for row in rows], [row[2 + column] for row in rows], label=service)
            axes.set(xlabel="seconds", title=name, ylim=(0, None))
        axes.legend()
        figure.savefig(folder / "soak.png")


@dataclass(frozen=True)
class Soaked:
    """What came of a soak: what was wrong, what was done, and how often the run was resumed."""

    wrong: list[str]
    done: list[str]
    resumes: int


def soak(bench: Bench, *, rounds: int, seed: int, out: Path) -> Soaked:
    """Run `rounds` rounds under the nemesis of `seed`."""
    rng = random.Random(seed)
    kind = ("closed", "streaming")[seed % 2]
    settings = (f"rounds.count={rounds}", "tracking.enabled=true", "learn.snapshots=0")
    undisturbed, code = bench.start(kind, settings=settings)
    assert code == 0, bench.output.read_text()
    # A few rounds see all of it too.
    to_come = ["kill_daemon", *rng.sample(list(dict.fromkeys(DEEDS)), 3), "kill_daemon"]
    measurements, done, run, resumes = Measurements(bench), list[str](), bench.next_run(kind), 0
    while True:
        point = f"{rng.choice(POINTS['orchestrator'])}@{rng.randint(1, 20)}"
        environment = {VARIABLE: point} if resumes < RESUMES and rng.random() < 0.5 else {}
        exists = (run / "run.json").exists()
        pid = bench.begin(kind, run, settings, resume=exists, **environment)
        code = _disturbed(Nemesis(bench, rng, pid, done, to_come), measurements, harm=resumes < RESUMES)
        if code == 0:
            break
        resumes += 1
        if resumes > RESUMES + 3:
            return Soaked([f"an undisturbed orchestrator ends with {code}: {bench.output.read_text()[-2000:]}"], done, resumes)
    measurements.take()
    measurements.write(out)
    wrong = [*problems(bench, run, facts(undisturbed)), *searched_twice(run), *doubles_in_mlflow(run), *measurements.growth()]
    return Soaked([*wrong, *(f"left over: {path}" for path in leftovers(run))], done, resumes)


def _disturbed(nemesis: Nemesis, measurements: Measurements, *, harm: bool) -> int:
    """Return the exit code of an orchestrator that is disturbed."""
    with ThreadPoolExecutor(1) as pool:
        raging = pool.submit(nemesis.rage) if harm else None
        try:
            with killed_after(STANDSTILL_S, nemesis.orchestrator):
                return nemesis.bench.orchestrators.wait()
        finally:
            nemesis.over.set()
            if raging is not None:
                raging.result()
            nemesis.bench.calm()
            measurements.take()


@contextlib.contextmanager
def killed_after(seconds: float, pid: int) -> Iterator[None]:
    """Kill `pid` if the context takes longer than `seconds`."""
    timer = threading.Timer(seconds, os.kill, [pid, signal.SIGKILL])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def searched_twice(run: Path) -> list[str]:
    """Return the rounds whose examples are not covered by their shards exactly once."""
    store, wrong = open_store(run), []
    for report in load_reports(store):
        shards = sorted(load_search(store, report.round).shards, key=lambda shard: shard["first"])
        ends = [shard["first"] + shard["count"] for shard in shards]
        if [shard["first"] for shard in shards[1:]] != ends[:-1]:
            wrong.append(f"round {report.round}: shards {[(shard['first'], shard['count']) for shard in shards]}")
    return wrong


def doubles_in_mlflow(run: Path) -> list[str]:
    """Bring MLflow up to date; return the metrics with two values at a step."""
    result = sync(run)
    client = connect(tracking_uri("", root=run.parent), "repsearch").client
    wrong = []
    for name in client.get_run(result.mlflow_run_id).data.metrics:
        if name.startswith("system/"):
            continue
        steps = [metric.step for metric in client.get_metric_history(result.mlflow_run_id, name)]
        if len(steps) != len(set(steps)):
            wrong.append(f"MLflow has {name} twice at a step")
    return wrong


def main() -> int:
    """Soak until a seed fails, or once with the seed that is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="by default one that the clock chooses, which is printed")
    parser.add_argument("--out", type=Path, default=Path("soak"), help="folder for soak.csv and soak.png")
    options = parser.parse_args()
    seed = int(time.time()) % 1_000_000 if options.seed is None else options.seed
    print(f"seed {seed}, {options.rounds} rounds", flush=True)
    with tempfile.TemporaryDirectory() as folder, Bench(Path(folder) / "runs", proxied=True) as bench:
        soaked = soak(bench, rounds=options.rounds, seed=seed, out=options.out)
    counts = ", ".join(f"{name} {soaked.done.count(name)}" for name in sorted(set(soaked.done)))
    print(f"{counts}; resumed {soaked.resumes} times; {options.out / 'soak.png'}")
    for wrong in soaked.wrong:
        print(wrong)
    print(
        f"seed {seed}: "
        + ("NOT HELD; again: python -m tests.soak " + f"--rounds {options.rounds} --seed {seed}" if soaked.wrong else "held")
    )
    return 1 if soaked.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
