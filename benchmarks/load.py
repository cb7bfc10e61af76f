"""Daemons under load: a daemon that searches with many clients, a queue that is full, a run with many searchers.

    python benchmarks/load.py [--clients 100] [--watches 50] [--jobs 1000] [--searchers 32] [--seconds 20] [--json FILE]

answers   while a searcher daemon searches for a run: time of a health check and of GetInfo for CLIENTS clients on connections of their
          own, each asking five times a second, with WATCHES open watches of the running job; goal: p99 within 1 s
queue     JOBS jobs sent to that daemon at once: how many it queues, how many it refuses and with what; all of them answered
searchers a run with SEARCHERS local searcher daemons and shards of a few images: every shard is done once, by whom; a daemon is a process
          of some 0.4 GB
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from orchestrator.journal import read_journal
from repsearch.errors import DaemonError

ROOT = Path(__file__).resolve().parents[1]
CLIENT_PROCESSES = 4
PAUSE_S = 0.2
Row = dict[str, Any]


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--watches", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--searchers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--ask", nargs=2, metavar=("ADDRESS", "JOB"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        print(json.dumps(ask(*options.ask, options.clients, options.watches, options.seconds)))
        return
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "runs"
        root.mkdir()
        with searching(root) as (address, job):
            rows = [answers(address, job, options), queue(address, root, options.jobs)]
        rows.append(searchers(root, options.searchers))
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


@contextmanager
def searching(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the address of a searcher daemon, and the id of the job that it is searching in for a run."""
    from orchestrator.client import DaemonClient

    serve = [
        sys.executable,
        "-m",
        "searcher",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--store",
        str(root),
        "--threads",
        "1",
        "--exit-with-stdin",
    ]
    with (root / "searcher.log").open("w") as log:
        daemon = subprocess.Popen(serve, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    assert daemon.stdout is not None and daemon.stdin is not None
    try:
        address = json.loads(daemon.stdout.readline())["address"]
        run = orchestrator(
            root, "busy", f'searcher.addresses=["{address}"]', "searcher.shard_examples=1000000", "search.strategy.generations=[100000,1,1]"
        )
        try:
            with DaemonClient(address, "searcher") as client:
                # The first jobs are checks and the initial network, which are short: the search is what runs a second later too.
                job = ""
                while not job or not client.get(job).progress.total:
                    time.sleep(0.5)
                    job = next(iter(client.connect().unfinished_jobs), "")
            yield address, job
        finally:
            run.send_signal(signal.SIGINT)
            run.wait(60)
    finally:
        daemon.stdin.close()
        daemon.wait(60)
        daemon.stdout.close()


def answers(address: str, job: str, options: argparse.Namespace) -> Row:
    """Return percentiles of the times of a health check and of GetInfo, in milliseconds, asked by processes of their own."""
    share = [str(-(-number // CLIENT_PROCESSES)) for number in (options.clients, options.watches)]
    command = [
        sys.executable,
        __file__,
        "--ask",
        address,
        job,
        "--clients",
        share[0],
        "--watches",
        share[1],
        "--seconds",
        str(options.seconds),
    ]
    asking = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(CLIENT_PROCESSES)]
    found = [json.loads(process.communicate()[0]) for process in asking]
    row: Row = {"name": "answers", "clients": options.clients, "watches": sum(part["watches"] for part in found)}
    for kind in ("health", "info"):
        times = sorted(value for part in found for value in part[kind])
        cuts = statistics.quantiles(times, n=100)
        row |= {f"{kind}_calls": len(times), f"{kind}_p50_ms": round(1000 * cuts[49], 1), f"{kind}_p99_ms": round(1000 * cuts[98], 1)}
    return {**row, "heartbeats": sum(part["heartbeats"] for part in found), "failed": sum(part["failed"] for part in found)}


def ask(address: str, job: str, clients: int, watches: int, seconds: float) -> dict[str, Any]:
    """Return times of calls in seconds, by `clients` clients that ask until `seconds` have passed, while `watches` watches are open."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from orchestrator.client import OPTIONS, DaemonClient

    health: list[float] = []
    info: list[float] = []
    failed, heartbeats, open_watches = Counter[str](), Counter[str](), Counter[str]()
    end = time.monotonic() + seconds

    def timed(found: list[float], call: Callable[[], Any]) -> None:
        begin = time.monotonic()
        try:
            call()
        except (grpc.RpcError, DaemonError) as error:
            failed[type(error).__name__] += 1
        found.append(time.monotonic() - begin)

    def client(number: int) -> None:
        with grpc.insecure_channel(address, options=OPTIONS) as channel, DaemonClient(address, "searcher") as daemon:
            stub = health_pb2_grpc.HealthStub(channel)
            while time.monotonic() < end:
                timed(health, lambda: stub.Check(health_pb2.HealthCheckRequest(), timeout=30))
                timed(info, daemon.connect)
                time.sleep(PAUSE_S)

    def watch(daemon: DaemonClient) -> None:
        open_watches["open"] += 1
        try:
            for _ in daemon.watch(job):
                heartbeats["seen"] += 1
        except DaemonError:
            pass  # closed at the end

    watching = [DaemonClient(address, "searcher") for _ in range(watches)]
    threads = [threading.Thread(target=watch, args=(daemon,), daemon=True) for daemon in watching]
    threads += [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads[watches:]:
        thread.join()
    for daemon in watching:
        daemon.close()
    counts = {"watches": open_watches["open"], "heartbeats": heartbeats["seen"], "failed": sum(failed.values())}
    return {"health": health, "info": info, **counts}


def queue(address: str, root: Path, jobs: int) -> Row:
    """Return how many of `jobs` jobs, sent at once to a daemon that is busy, it queued, and what it answered to the others."""
    from orchestrator.client import DaemonClient
    from repsearch.rpc.v1 import jobs_pb2

    def send(number: int) -> str:
        request = jobs_pb2.StartRequest(request_id=f"load-{number}", run_id="load", term=1, run_path="load", config_json="{}")
        request.check.SetInParent()
        try:
            client.start(request)
        except DaemonError as error:
            return str(error).partition("searcher at ")[2].partition(": ")[2]
        return ""

    begin = time.monotonic()
    with DaemonClient(address, "searcher") as client, ThreadPoolExecutor(16) as pool:
        found = Counter(pool.map(send, range(jobs)))
        seconds = time.monotonic() - begin
        serving = client.connect().service == "searcher"
    queued = found.pop("", 0)
    return {
        "name": "queue",
        "jobs": jobs,
        "queued": queued,
        "refused": sum(found.values()),
        "seconds": round(seconds, 2),
        "answers": dict(found),
        "serves": serving,
    }


def searchers(root: Path, count: int) -> Row:
    """Return how often the shards of a run with `count` searcher daemons were attempted, and how many daemons did some."""
    begin = time.monotonic()
    settings = [f"searcher.count={count}", "searcher.shard_examples=16", "rounds.count=1", "learn.epochs=1", "dataset.train=1024"]
    run = orchestrator(root, "many", *settings, "search.micro_batch=16", "search.strategy.generations=[2,2,1]")
    if run.wait() != 0:
        raise SystemExit(f"the run with {count} searchers failed:\n{(root / 'many.log').read_text()}")
    seconds = time.monotonic() - begin
    attempts = Counter(path.name.partition("-")[0] for path in (root / "many" / "rounds").glob("*/search/*-a*"))
    report = next(record for record in read_journal(root / "many") if record["kind"] == "round_finished")
    return {
        "name": "searchers",
        "searchers": count,
        "shards": len(attempts),
        "attempts_of_a_shard": max(attempts.values()),
        "round_s": round(report["report"]["metrics"]["seconds/round"], 2),
        "run_s": round(seconds, 1),
    }


def orchestrator(root: Path, name: str, *settings: str) -> subprocess.Popen[str]:
    """Start a run of configs/digits.toml."""
    words = [
        word for setting in (f"run.root={root}", "run.baseline=false", "tracking.enabled=false", *settings) for word in ("--set", setting)
    ]
    command: Sequence[str] = [sys.executable, "-m", "orchestrator", "run", str(ROOT / "configs/digits.toml"), "--name", name, *words]
    with (root / f"{name}.log").open("w") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, text=True)


if __name__ == "__main__":
    main()
