"""The plug-in of `make faults`: after the tests a table of fault cases: what was injected, what must hold, and whether it did.

A test of a case has the marker `fault(number, ...)`. A case holds if every test of it passed, and at least one did.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

CASES = {
    1: ("SIGKILL of a searcher within a search, and before the manifest", "the attempt does not count; every shard counts once"),
    2: ("SIGKILL after the manifest, before the reply", "what is committed is found and used; no second search"),
    3: ("SIGKILL of a learner within an epoch, within a checkpoint, before the reply", "goes on from the last whole one; no curve doubled"),
    4: ("SIGKILL of the orchestrator before and after every state change", "`resume` comes to the same bits"),
    5: ("SIGTERM, and again", "a daemon drains, ends in time with its code; the second ends it at once"),
    6: ("SIGSTOP of a searcher, then SIGCONT", "lost within the bound, its late result fenced, and it rejoins"),
    7: ("SIGSTOP of a learner, of an orchestrator", "the run goes on; its lock is not taken by another"),
    8: ("two daemons on a port, two orchestrators on a run", "the second is refused, by name of the owner"),
    9: ("a daemon restarted on its address", "a new incarnation, whose jobs are others"),
    10: ("out of memory, exceptions in user code, numbers that are not finite", "told with their cause, tried a bounded number of times"),
    11: ("a daemon's child process dies, or its daemon does", "the daemon lives and its job fails; no orphan is left"),
    12: ("all searchers gone; stragglers", "a clear end within a bound, resumable"),
    13: ("request lost, answer lost, of each call", "handled twice, the effect of once"),
    14: ("duplicate and late messages of an earlier term", "refused"),
    15: ("a black hole, half-open connections, blackouts, latency", "recovers, or is told within a bound"),
    16: ("the stream of events is cut", "goes on from the next event: no gap, no double"),
    17: ("messages too large, of another version, with another digest", "refused with their reason"),
    18: ("TLS: wrong authority, expired, plaintext, no certificate", "fails at once with a hint"),
    19: ("more clients than threads", "health answers"),
    20: ("a hung interpreter, a job without progress", "noticed, and after a bound ended"),
    21: ("chunks missing, cut, empty, flipped; data without manifest and the reverse", "named, and never read as zeros"),
    22: ("a full disk, a folder that is read-only", "told; nothing half written counts; the run can be resumed"),
    23: ("S3: 500, 503, time-outs, credentials, 404", "retried or told; nothing half written counts"),
    24: ("a shared folder that shows files late", "waited for, or told"),
    25: ("a folder with rounds of another run, or of a future", "refused, or not taken for this run's"),
    26: ("two writers of one shard", "at most one commits, whole"),
    27: ("a state file cut at every byte", "the state before is used, or a clear refusal"),
    28: ("MLflow down, hanging, frozen", "the run goes on; MLflow catches up, nothing doubled"),
    29: ("several processes at a fresh database", "all of them go on"),
    30: ("resumed with another configuration or version", "refused with the difference"),
    31: ("other searchers, other shards", "the same bits"),
    32: ("the clock jumps by an hour", "no time-out, no false death, the same bits"),
    33: ("a seeded mixture of all of it", "what must hold holds; nothing grows"),
}
"""Number: what is injected, and what must hold."""
REPORT = "FAULTS_JSON"


class Outcomes:
    """Counts outcomes by case."""

    def __init__(self) -> None:
        self.cases: dict[str, list[int]] = {}
        self.counts: dict[int, Counter[str]] = {number: Counter() for number in CASES}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            numbers = [number for mark in item.iter_markers("fault") for number in mark.args]
            unknown = set(numbers) - set(CASES)
            if unknown or ("fault" in item.keywords and not numbers):
                raise pytest.UsageError(f"{item.nodeid}: no fault case {unknown or 'is named'}; there are 1 to {len(CASES)}")
            self.cases[item.nodeid] = numbers

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            for number in self.cases.get(report.nodeid, []):
                self.counts[number][report.outcome] += 1

    def pytest_terminal_summary(self) -> None:
        table = Table("", "injected", "must hold", "tests", "", title="fault cases")
        for number, (injected, invariant) in CASES.items():
            table.add_row(str(number), injected, invariant, str(self.counts[number]["passed"]), verdict(self.counts[number]))
        Console(width=160).print(table)
        if path := os.environ.get(REPORT):
            found = {number: {**self.counts[number], "verdict": verdict(self.counts[number])} for number in CASES}
            Path(path).write_text(json.dumps(found, indent=1) + "\n")


def verdict(counts: Counter[str]) -> str:
    """Return whether a case held."""
    if counts["failed"]:
        return "NOT HELD"
    return "held" if counts["passed"] else "not covered"


def pytest_configure(config: pytest.Config) -> None:
    """Count outcomes."""
    config.pluginmanager.register(Outcomes())
