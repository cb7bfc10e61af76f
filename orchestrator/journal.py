"""The run's journal: what happened, in order, one JSON record a line, in the run's folder.

It is the truth that MLflow mirrors: a record is on disk before anything else learns of it, and replaying the file gives the same
MLflow runs. Records are dictionaries with `n` (0, 1, 2, ...), `time` (Unix seconds) and `kind`; the other keys depend on the kind:

run_started     run_id, name, term, resumed, config, dataset, tags
round_started   round, plan
point           round, key, step, value         one value of a round's curve: by epoch or by generation
search_progress round, and the fields of `orchestrator.live.LiveState`, of a search that goes on
shard_size      round, examples, seconds_per_example    of shards as `searcher.shard_examples = "auto"` has them; the newest counts
stream_progress round, rounds, staleness, searcher_waited_s, learner_waited_s, rounds_per_s, seconds_left    of a streamed run
round_finished  round, report
network_ready   round, path, digest             the network learned in the round is committed
incident        event, text                     what went wrong, or is waited for: a daemon lost, a job that stands still
analysis_ready  path                            figures and tables are in this folder, relative to the run's; also after the end
run_finished    status ("FINISHED", "FAILED" or "KILLED"), error

One process writes (the orchestrator that holds the run); any number read.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from repsearch.errors import NumericalError, StoreError
from repsearch.failpoints import reach

JOURNAL_NAME = "journal.jsonl"

KINDS: dict[str, frozenset[str]] = {
    "run_started": frozenset({"run_id", "name", "term", "resumed", "config", "dataset", "tags"}),
    "round_started": frozenset({"round", "plan"}),
    "point": frozenset({"round", "key", "step", "value"}),
    "search_progress": frozenset(
        {"round", "images", "total", "layer", "generation", "generations", "cross_entropy", "solved", "evaluations_per_s", "seconds_left"}
    ),
    "shard_size": frozenset({"round", "examples", "seconds_per_example"}),
    "stream_progress": frozenset({"round", "rounds", "staleness", "searcher_waited_s", "learner_waited_s", "rounds_per_s", "seconds_left"}),
    "round_finished": frozenset({"round", "report"}),
    "network_ready": frozenset({"round", "path", "digest"}),
    "incident": frozenset({"event", "text"}),
    "analysis_ready": frozenset({"path"}),
    "run_finished": frozenset({"status", "error"}),
}
"""The keys of each kind of record, besides n, time and kind."""

STATUSES = ("FINISHED", "FAILED", "KILLED")

Record = dict[str, Any]
Point = tuple[str, int, float]
"""key, step, value"""


class Journal:
    """The journal in `folder`, opened for appending; a last line that a crash cut short is dropped.

    Raises `StoreError` if any other line is malformed. Safe to use from several threads.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL_NAME
        reader = JournalReader(folder)
        records = reader.read()
        self._count = len(records)
        self._size = reader.offset
        self._points = {_point_name(record) for record in records if record["kind"] == "point"}
        self._lock = threading.Lock()
        reach("journal.open.before")
        try:
            self._file = self.path.open("ab", buffering=0)
            self._file.truncate(reader.offset)
            os.fsync(self._file.fileno())
            _fsync_folder(folder)
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written: {error}") from None
        reach("journal.open.after")

    def append(self, kind: str, /, **fields: Any) -> Record:
        """Write one record (not a point) to disk and return it."""
        if kind == "point":
            raise ValueError("points are appended by append_points, which drops those already known")
        with self._lock:
            return self._write([(kind, fields)])[0]

    def append_all(self, entries: Sequence[tuple[str, dict[str, Any]]]) -> list[Record]:
        """Write several records (no points), each a kind and its fields, in one write; return them."""
        with self._lock:
            return self._write(entries)

    def append_points(self, round: int, points: Iterable[Point]) -> list[Record]:
        """Write the points whose (round, key, step) is new, in one write; return their records.

        A learner that goes on from a checkpoint repeats points that it already told; the first value stays.
        Raises `NumericalError` for a value that is not finite.
        """
        with self._lock:
            new: dict[tuple[int, str, int], dict[str, Any]] = {}
            for key, step, value in points:
                if not math.isfinite(value):
                    raise NumericalError(f"round {round}: {key} at step {step} is {value}; lower the learning rate or look at the data")
                name = (round, key, step)
                if name not in self._points:
                    new.setdefault(name, {"round": round, "key": key, "step": int(step), "value": float(value)})
            records = self._write([("point", fields) for fields in new.values()])
            self._points.update(new)
            return records

    def close(self) -> None:
        """Close the file; every record is already on disk."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, entries: Sequence[tuple[str, dict[str, Any]]]) -> list[Record]:
        if not entries:
            return []
        now = time.time()
        records = [{"n": self._count + index, "time": now, "kind": kind, **fields} for index, (kind, fields) in enumerate(entries)]
        for record in records:
            _check(record, where=f"{self.path}: record {record['n']}")
        data = "".join(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n" for record in records).encode()
        reach("journal.append.before")
        try:
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
            reach("journal.append.written")
            os.fsync(self._file.fileno())
        except OSError as error:
            # A line written in part would make the next one malformed.
            self._file.truncate(self._size)
            raise StoreError(f"{self.path}: cannot be written: {error}; make room, then resume the run") from None
        reach("journal.append.after")
        self._size += len(data)
        self._count += len(records)
        return records


class JournalReader:
    """Reads the journal in `folder` bit by bit, also while it is written."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL_NAME
        self.offset = 0
        """Bytes read so far: the end of the last whole line."""
        self._count = 0

    def read(self) -> list[Record]:
        """Return the whole records written since the last call; a line without its end is left for later.

        Raises `StoreError` naming file and line for anything that is not a record with the next number.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be read: {error}") from None
        whole = data[: data.rfind(b"\n") + 1]
        records = []
        for line in whole.splitlines():
            record = _parse(line, where=f"{self.path}: line {self._count + 1}")
            if record["n"] != self._count:
                raise StoreError(
                    f"{self.path}: line {self._count + 1}: record number {record['n']}, expected {self._count}; the file was altered"
                )
            records.append(record)
            self._count += 1
        self.offset += len(whole)
        return records


def read_journal(folder: Path) -> list[Record]:
    """Return every whole record of the journal in `folder`, without changing the file; [] if there is none."""
    return JournalReader(folder).read()


def last_of_run(records: Sequence[Record]) -> Record | None:
    """Return the last record but those of analyses, which may follow the end of a run: the end, if it has one."""
    return next((record for record in reversed(records) if record["kind"] != "analysis_ready"), None)


def _parse(line: bytes, *, where: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError:
        raise StoreError(f"{where}: not JSON; the file was altered, restore it from a copy") from None
    if not isinstance(record, dict) or not isinstance(record.get("n"), int) or not isinstance(record.get("time"), (int, float)):
        raise StoreError(f"{where}: not a record; the file was altered, restore it from a copy")
    _check(record, where=where)
    return record


def _check(record: Record, *, where: str) -> None:
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise StoreError(f"{where}: unknown kind {kind!r}; known: {', '.join(KINDS)}")
    missing = KINDS[kind] - record.keys()
    if missing:
        raise StoreError(f"{where}: {kind} without {', '.join(sorted(missing))}")
    if kind == "run_finished" and record["status"] not in STATUSES:
        raise StoreError(f"{where}: unknown status {record['status']!r}; known: {', '.join(STATUSES)}")


def _point_name(record: Record) -> tuple[int, str, int]:
    return record["round"], record["key"], record["step"]


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
