"""Job functions for the tests of serving: what a job does is chosen by its `config_json`."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import threading
from pathlib import Path

from repsearch.errors import NumericalError
from repsearch.rpc.v1 import jobs_pb2
from repsearch.serving import JobContext, JobResult


def run_job(request: jobs_pb2.StartRequest, context: JobContext) -> JobResult:
    options = json.loads(request.config_json or "{}")
    return JOBS[options.get("do", "succeed")](Path(request.run_path), options, context)


def succeed(run: Path, options: dict, context: JobContext) -> JobResult:
    return JobResult(path="out", digest="abc", dataset_digest=f"{context.device}/{context.threads}/{context.store_root}")


def count(run: Path, options: dict, context: JobContext) -> JobResult:
    """Report `count` points and as much progress, `pause` seconds apart."""
    pause = threading.Event()
    for index in range(options["count"]):
        context.check()
        context.points([("curve", index, index / 2)])
        context.progress(index + 1, options["count"], unit="steps", text="counting")
        pause.wait(options.get("pause", 0.0))
    return JobResult()


def hold(run: Path, options: dict, context: JobContext) -> JobResult:
    """Write `started`, then wait for the file `release` in the run's folder."""
    run.mkdir(exist_ok=True)
    (run / "started").write_text(str(os.getpid()))
    pause = threading.Event()
    while not (run / "release").exists():
        context.check()
        pause.wait(0.02)
    return JobResult(path="held")


def gil(run: Path, options: dict, context: JobContext) -> JobResult:
    """Hold the GIL in one C call: PyDLL does not release it."""
    run.mkdir(exist_ok=True)
    (run / "started").write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(options["seconds"])
    return JobResult()


def busy(run: Path, options: dict, context: JobContext) -> JobResult:
    total = 0
    for index in range(10**9):
        total += index
        if index % 100_000 == 0:
            context.check()
            context.progress(index, 10**9, unit="additions")
    return JobResult(path=str(total))


def crash(run: Path, options: dict, context: JobContext) -> JobResult:
    os.kill(os.getpid(), signal.SIGKILL)
    return JobResult()


def refuse(run: Path, options: dict, context: JobContext) -> JobResult:
    raise NumericalError("image 3: fitness is nan; lower search.noise")


def bug(run: Path, options: dict, context: JobContext) -> JobResult:
    raise ZeroDivisionError("a bug")


def flood(run: Path, options: dict, context: JobContext) -> JobResult:
    for index in range(200):
        context.points([("curve", index * 1000 + step, 0.0) for step in range(1000)])
    return JobResult()


def talk(run: Path, options: dict, context: JobContext) -> JobResult:
    print("a plain line on stdout")
    return JobResult()


def pid(run: Path, options: dict, context: JobContext) -> JobResult:
    return JobResult(path=str(os.getpid()))


def stream(run: Path, options: dict, context: JobContext) -> JobResult:
    """Tell of every item: its number, and the round that it names."""
    for arrival in context.items():
        context.item_done(jobs_pb2.ItemDone(sequence=arrival.sequence, evaluations=arrival.item.search.round))
    return JobResult(path="ended")


JOBS = {f.__name__: f for f in (succeed, count, hold, gil, busy, crash, refuse, bug, flood, talk, pid, stream)}
