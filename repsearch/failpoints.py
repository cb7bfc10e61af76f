"""Failpoints: named places before and after every durable write and every change of state, where a test has the process kill itself.

    REPSEARCH_FAILPOINT=journal.append.after@3     SIGKILL when the process comes by that place for the third time
    REPSEARCH_FAILPOINT=@/path/of/file             the same, with what the file says whenever it is there; the file is removed before
                                                   the kill, so that the process started in its place lives
    REPSEARCH_FAILPOINT_TRACE=/path/of/file        append the name of every place come by, a line each

Without these variables `reach` does nothing. A name that is not in `POINTS` is refused when a program starts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

from repsearch.errors import ConfigError

VARIABLE = "REPSEARCH_FAILPOINT"
TRACE = "REPSEARCH_FAILPOINT_TRACE"

POINTS = {
    "store.folder.before": "a folder of the store is about to be made",
    "store.folder.after": "a folder of the store is made and flushed",
    "store.create.before": "a new file is about to be written",
    "store.create.written": "a new file is on the disk under its temporary name",
    "store.create.linked": "a new file has its name, and its temporary one too",
    "store.create.after": "a new file is on the disk under its name alone",
    "store.replace.before": "a file is about to be replaced",
    "store.replace.written": "the new content is there under a temporary name",
    "store.replace.after": "the file has its new content",
    "store.group.before": "the folder of a group is about to be made",
    "store.group.empty": "a group has its metadata and no rows",
    "store.group.rows": "a group has some rows more",
    "store.group.flushed": "a group is on the disk, all but its manifest",
    "store.group.after": "a group is committed; nobody was told",
    "store.delete.before": "a group is about to be deleted",
    "store.delete.unreadable": "a group has lost its manifest, and has its arrays",
    "store.delete.after": "a group is deleted",
    "store.pack.before": "a group is about to be written as one file",
    "store.pack.after": "a group in one file is committed; nobody was told",
    "store.remove.before": "a file is about to be removed",
    "store.remove.after": "a file is removed",
    "store.clear.before": "a folder and what it holds are about to be removed",
    "store.clear.after": "a folder and what it holds are removed",
    "store.settle.before": "groups of a relaxed store are about to be flushed",
    "store.settle.after": "groups of a relaxed store are on the disk",
    "journal.open.before": "the journal is about to be opened, and a torn last line to be cut off",
    "journal.open.after": "the journal is open and whole",
    "journal.append.before": "records are about to be appended to the journal",
    "journal.append.written": "records are in the journal, and perhaps not on the disk",
    "journal.append.after": "records are in the journal, on the disk",
    "run.folder.before": "the folder of a new run is about to be made",
    "run.folder.filled": "the folder of a new run is whole, under its temporary name",
    "run.folder.after": "the folder of a new run has its name",
    "run.lock.before": "the run's lock is about to be taken",
    "run.lock.after": "the run's lock is taken",
    "run.term.before": "a resumed run is about to begin its next term",
    "run.term.after": "a resumed run is in its next term; no daemon knows",
    "run.finish.before": "a run is at its end, and the journal does not say so yet",
    "run.finish.after": "the journal has the end of the run",
    "round.search.before": "a round's shards are all there, and nothing says that they count",
    "round.search.after": "a round's search counts",
    "round.report.before": "a round is learned and not reported",
    "round.report.after": "a round is reported, and the journal does not say so yet",
    "round.prune.before": "old groups are about to be removed",
    "round.prune.said": "it is noted which rounds are removed; they are there",
    "round.prune.after": "old groups are removed",
    "segment.commit.before": "some streamed rounds are flushed and do not count",
    "segment.commit.after": "some streamed rounds count, and the journal does not say so yet",
    "stream.forget.before": "what is left of streamed rounds that do not count is about to be removed",
    "stream.forget.after": "what is left of streamed rounds that do not count is removed",
    "stream.push.before": "an item is about to be given to a daemon",
    "stream.push.after": "an item is given to a daemon",
    "job.start.before": "a job is about to be started on a daemon",
    "job.start.after": "a job is started on a daemon",
    "searcher.shard.before": "a shard is searched, and not committed",
    "searcher.shard.after": "a shard is committed, and nobody was told",
    "learner.checkpoint.before": "an epoch is learned, and not kept",
    "learner.checkpoint.after": "an epoch's checkpoint is there, older ones too",
    "learner.checkpoint.pruned": "older checkpoints are removed",
    "learner.snapshot.before": "the network of an epoch is about to be kept",
    "learner.snapshot.after": "the network of an epoch is kept",
    "learner.state.before": "the learner's state after a round is about to be written",
    "learner.state.after": "the learner's state after a round is there, its network not",
    "learner.network.before": "a round's network is about to be written",
    "learner.network.after": "a round's network is there, and nobody was told",
    "tracking.state.before": "how far the journal is mirrored is about to be noted",
    "tracking.state.written": "it is noted under a temporary name",
    "tracking.state.after": "how far the journal is mirrored is noted",
    "tracking.apply.before": "a record is about to be told to MLflow",
    "tracking.apply.after": "a record is told to MLflow, and that is not noted",
}
"""What is the case at each place."""


class Armed:
    """The failpoint that this process is to die at, and the trace that it is to leave."""

    def __init__(self, spec: str, trace: str) -> None:
        self._spec, self._trace = spec, trace
        self._lock = threading.Lock()
        self._parsed: tuple[str, tuple[str, int]] | None = None
        self._reached = 0

    def reach(self, name: str) -> None:
        """Note that the process comes by `name`, and kill it if its time has come."""
        with self._lock:
            if self._trace:
                # On a disk that a test made full, the program is to fail where it does without a trace.
                with contextlib.suppress(OSError), Path(self._trace).open("a") as file:
                    file.write(f"{name}\n")
            if self._due(name):
                os.kill(os.getpid(), signal.SIGKILL)

    def check(self) -> None:
        """Raise `ConfigError` if what is armed is no failpoint."""
        if text := self._text():
            parse(text)

    def _due(self, name: str) -> bool:
        text = self._text()
        if not text:
            return False
        if self._parsed is None or self._parsed[0] != text:
            self._parsed, self._reached = (text, parse(text)), 0
        point, count = self._parsed[1]
        self._reached += name == point
        if name != point or self._reached < count:
            return False
        if self._spec.startswith("@"):
            # Of several processes that share the file, the one that removes it is the one to die.
            with contextlib.suppress(FileNotFoundError):
                Path(self._spec[1:]).unlink()
                return True
            return False
        return True

    def _text(self) -> str:
        if not self._spec.startswith("@"):
            return self._spec
        try:
            return Path(self._spec[1:]).read_text().strip()
        except FileNotFoundError:
            return ""


def parse(text: str) -> tuple[str, int]:
    """Return name and count of "NAME@COUNT", or of "NAME", which is the first time; raises `ConfigError` for anything else."""
    name, at, count = text.partition("@")
    if name not in POINTS:
        raise ConfigError(f"{VARIABLE}: there is no failpoint {name!r}; known: {', '.join(POINTS)}")
    if at and not (count.isascii() and count.isdecimal() and int(count) > 0):
        raise ConfigError(f"{VARIABLE}: {text!r}: the count {count!r} is not a number from 1 on; give {name}@1, or {name}@2, ...")
    return name, int(count) if at else 1


def armed(environment: Mapping[str, str]) -> Armed | None:
    """Return what `environment` arms, if anything."""
    spec, trace = environment.get(VARIABLE, ""), environment.get(TRACE, "")
    return Armed(spec, trace) if spec or trace else None


_armed = armed(os.environ)


def rearm() -> None:
    """Look at the environment again, in a process whose environment was changed."""
    global _armed
    _armed = armed(os.environ)


def check() -> None:
    """Raise `ConfigError` if what is armed is no failpoint; called when a program starts."""
    if _armed is not None:
        _armed.check()


def reach(name: str) -> None:
    """Come by the place `name`, one of `POINTS`."""
    if _armed is not None:
        _armed.reach(name)
