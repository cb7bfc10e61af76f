"""Values that another table chose: taken as they are, or with each row as long as one row of that table took."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.evidence.results import Record, read
from orchestrator.evidence.rows import Row
from repsearch.errors import ConfigError
from repsearch.families import nearest


@dataclass(frozen=True)
class Given:
    """Rows of result file `path`.

    seconds: core seconds that every row is to take; None leaves its length.
    """

    path: Path
    records: Sequence[Record]
    seconds: float | None = None

    def find(self, row: Row) -> Record | None:
        """Return the record whose values fit `row`: its own, else that of its method."""
        exact = [record for record in self.records if (record["group"], record["name"]) == (row.group, row.name)]
        return next(iter(exact + [record for record in self.records if record["name"] == (row.method or row.name)]), None)

    def values(self, row: Row, keys: Sequence[str], base: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values chosen for `keys` and, at equal seconds, the row's length; raises `ConfigError` for what the file lacks."""
        found, method = self.find(row), row.method or row.name
        missing = sorted(set(keys) - set(found["chosen"] if found else ()))
        if found is None or missing:
            lacks = f"has no row {method!r}" if found is None else f"chose no {', '.join(missing)} for {method!r}"
            raise ConfigError(f"--values-from {self.path}: it {lacks}; give another file, or leave {row.title!r} out (--row)")
        values = {key: found["chosen"][key] for key in keys}
        return values if self.seconds is None else {**values, **length(row, found, base, self.seconds)}


def given(path: Path, equal_seconds: str) -> Given:
    """Return what result file `path` gives; `equal_seconds`: the row that says how long all are to take, or nothing.

    Raises `ConfigError`, `StoreError`.
    """
    if not path.is_file():
        raise ConfigError(f"--values-from {path}: there is no such file; give the .json of a table that was made")
    records = read(path)["rows"]
    if not equal_seconds:
        return Given(path, records)
    titles = [record["row"] for record in records]
    if equal_seconds not in titles:
        raise ConfigError(f"--equal-seconds {equal_seconds!r}{nearest(equal_seconds, titles)}; {path} has {'; '.join(titles)}")
    return Given(path, records, seconds=next(record["core_s"] for record in records if record["row"] == equal_seconds))


def length(row: Row, record: Record, base: Mapping[str, Any], seconds: float) -> dict[str, int]:
    """Return the passes over the data with which `row` takes `seconds`, at least one: learning's epochs, or its rounds.

    What a row of one search spends on it stays; where every pass has a search of its own, all of it grows with the passes.
    """
    rounds = row.settings.get("rounds", {})
    count = rounds.get("count") if isinstance(rounds, Mapping) else None
    if count is None:
        epochs = row.settings.get("learn.epochs", base["learn"]["epochs"])
        searching = record["core_s"] * record["search_s"] / max(record["search_s"] + record["learn_s"], 1e-9)
        each = (record["core_s"] - searching) / epochs
        return {"learn.epochs": max(1, round((seconds - searching) / each))}
    window = rounds.get("examples_per_round")
    windows = math.ceil(base["dataset"]["train"] / window) if window else 1
    return {"rounds.count": windows * max(1, round(count / windows * seconds / record["core_s"]))}
