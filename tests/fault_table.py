"""The plug-in of `make faults`: at the end a table of fault cases: the fault, how it was injected, what must hold, and whether it did.

A test of a case has the marker `fault(number, ...)`. A case holds if every test of it passed, and at least one did; the run of the tests
fails if a case does not hold, also one that no test covered.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Generator, Mapping
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from tests.small_disk import can_mount

FULL_DISK = "a tmpfs of some kilobytes, limits of files (RLIMIT_FSIZE)" if can_mount() else "limits of files (RLIMIT_FSIZE); no tmpfs here"
CASES = {
    1: (
        "a searcher dies within a search, or before the manifest",
        "SIGKILL of daemon or compute process, at failpoints and in between",
        "the attempt does not count; every shard counts once",
    ),
    2: (
        "the death comes after the manifest, before the reply",
        "SIGKILL of the searcher at a failpoint; the orchestrator ended there",
        "what is committed is found and used; no second search",
    ),
    3: (
        "a learner dies within an epoch, within a checkpoint, before the reply",
        "SIGKILL at failpoints and in between; damaged checkpoints",
        "goes on from the last whole one; no curve doubled",
    ),
    4: (
        "the orchestrator dies before or after a change of state",
        "SIGKILL at every failpoint, one by one, and while it is resumed",
        "`resume` comes to the same bits",
    ),
    5: (
        "a daemon is told to end, and told again",
        "SIGTERM, once and twice",
        "drains, ends in time with its code; the second ends it at once",
    ),
    6: ("a searcher sleeps and wakes", "SIGSTOP, then SIGCONT", "lost within the bound, its late result fenced, and it rejoins"),
    7: (
        "a learner, or an orchestrator, sleeps and wakes",
        "SIGSTOP, then SIGCONT; leases by an injected clock",
        "the run goes on; its lock is not taken by another",
    ),
    8: (
        "two daemons on a port, two orchestrators on a run",
        "started a second time, also on another host's lease",
        "the second is refused, by name of the owner",
    ),
    9: ("a daemon restarted on its address", "SIGKILL, and started anew there", "a new incarnation, whose jobs are others"),
    10: (
        "out of memory, exceptions in user code, numbers that are not finite",
        "jobs that raise, crash or give NaN, configurations that diverge",
        "told with their cause, tried a bounded number of times",
    ),
    11: (
        "a daemon's child process dies, or its daemon does",
        "SIGKILL of either",
        "the daemon lives and its job fails; no orphan is left",
    ),
    12: ("all searchers gone; stragglers", "SIGKILL and SIGSTOP of all of them", "a clear end within a bound, resumable"),
    13: (
        "request lost, answer lost, of each call",
        "a TCP proxy that breaks the connection on the way there or back",
        "handled twice, the effect of once",
    ),
    14: ("duplicate and late messages of an earlier term", "calls with the terms of others", "refused"),
    15: (
        "a black hole, half-open connections, blackouts, latency",
        "a TCP proxy that holds and delays; SIGSTOP of the daemon",
        "recovers, or is told within a bound",
    ),
    16: ("the stream of events is cut", "a TCP proxy that cuts it again and again", "goes on from the next event: no gap, no double"),
    17: (
        "messages too large, of another version, with another digest",
        "such messages, and daemons of other versions and data",
        "refused with their reason",
    ),
    18: (
        "TLS: wrong authority, expired, plaintext, no certificate",
        "real certificates of each kind, by either side",
        "fails at once with a hint, never tried again",
    ),
    19: ("more clients than threads", "as many open streams as are taken, and more calls", "health answers"),
    20: (
        "a hung interpreter, a job without progress",
        "jobs that compute without pause, stand still, or ignore their end",
        "noticed, and after a bound ended",
    ),
    21: (
        "chunks missing, cut, empty, flipped; data without manifest and the reverse",
        "files and objects removed, cut, emptied, bit by bit altered",
        "named, and never read as zeros",
    ),
    22: (
        "a full disk, a folder that is read-only",
        f"{FULL_DISK}, read-only folders",
        "told; nothing half written counts; the run can be resumed",
    ),
    23: (
        "S3: 500, 503, time-outs, credentials, 404",
        "an S3 server in the test's process that answers so",
        "retried or told; nothing half written counts",
    ),
    24: ("a shared folder that shows files late", "a store that hides what is new for a while", "waited for, or told"),
    25: (
        "a folder with rounds of another run, or of a future",
        "rounds copied between runs; other data and settings",
        "refused, or not taken for this run's",
    ),
    26: ("two writers of one shard", "processes and threads that write at once", "at most one commits, whole"),
    27: ("a state file cut at every byte", "files cut at each length", "the state before is used, or a clear refusal"),
    28: (
        "MLflow down, hanging, frozen",
        "a closed port, a server that never answers, SIGSTOP of a real one",
        "the run goes on; MLflow catches up, nothing doubled",
    ),
    29: ("several processes at a fresh database", "three at once", "all of them go on"),
    30: ("resumed with another configuration or version", "altered files, daemons of other versions", "refused with the difference"),
    31: ("other searchers, other shards", "the same run on other daemons", "the same bits"),
    32: ("the clock jumps by an hour", "an injected clock that does, there and back", "no time-out, no false death, the same bits"),
    33: (
        "a seeded mixture of all of it",
        "kills, pauses, cuts and disk errors at random, over many rounds",
        "what must hold holds; nothing grows",
    ),
}
"""Number: the fault, how it is injected, and what must hold."""
REPORT = "FAULTS_JSON"
PROPERTY = "fault cases"
HELD, NOT_HELD, NOT_COVERED = "held", "NOT HELD", "NOT COVERED"


class Outcomes:
    """Counts outcomes by case."""

    def __init__(self) -> None:
        self.counts: dict[int, Counter[str]] = {number: Counter() for number in CASES}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            numbers = [number for mark in item.iter_markers("fault") for number in mark.args]
            unknown = set(numbers) - set(CASES)
            if unknown or ("fault" in item.keywords and not numbers):
                raise pytest.UsageError(f"{item.nodeid}: no fault case {unknown or 'is named'}; there are 1 to {len(CASES)}")
            # Properties travel with the report from the process that ran the test.
            item.user_properties.append((PROPERTY, numbers))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            for number in dict(report.user_properties).get(PROPERTY, []):
                self.counts[number][report.outcome] += 1

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        result = yield  # pytest's own summary, so that the table is the end of the output
        if session.config.option.collectonly or hasattr(session.config, "workerinput"):
            return result
        verdicts = {number: verdict(counts) for number, counts in self.counts.items()}
        self._print(verdicts)
        if path := os.environ.get(REPORT):
            found = {number: {**self.counts[number], "verdict": verdicts[number]} for number in CASES}
            Path(path).write_text(json.dumps(found, indent=1) + "\n")
        if session.exitstatus == pytest.ExitCode.OK and set(verdicts.values()) != {HELD}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return result

    def _print(self, verdicts: Mapping[int, str]) -> None:
        counts = Counter(verdicts.values())
        caption = ", ".join(f"{name}: {counts[name]}" for name in (HELD, NOT_HELD, NOT_COVERED) if counts[name])
        table = Table("", "fault", "injected how", "must hold", "tests", "", title="fault cases", caption=caption, caption_justify="left")
        for number, words in CASES.items():
            table.add_row(str(number), *words, str(self.counts[number]["passed"]), verdicts[number])
        Console(width=160).print(table)


def verdict(counts: Counter[str]) -> str:
    """Return whether a case held."""
    if counts["failed"]:
        return NOT_HELD
    return HELD if counts["passed"] else NOT_COVERED


def pytest_configure(config: pytest.Config) -> None:
    """Count outcomes."""
    config.pluginmanager.register(Outcomes())
