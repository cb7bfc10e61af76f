"""A table's results: one JSON file per table, dataset and number of images, rewritten whole after each row.

{"table", "title", "dataset", "images", "scale", "rows": [...]}; a row holds its definition's digest, so that a row whose definition
changed is made again, and the command, commit and hardware that made it.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

import repsearch
from orchestrator.evidence.rows import Row
from repsearch.errors import StoreError
from store.files import replace_file

Record = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """The file of a table's results on one dataset."""

    path: Path
    head: Mapping[str, Any]

    def rows(self) -> list[Record]:
        """Return the rows that are there; raises `StoreError` for a file that is not one of these."""
        if not self.path.exists():
            return []
        return list(read(self.path)["rows"])

    def find(self, row: Row, digest: str) -> Record | None:
        """Return the record of `row` as it is defined now, or None."""
        return next((record for record in self.rows() if record["row"] == row.title and record["digest"] == digest), None)

    def put(self, record: Record, order: Sequence[Row]) -> None:
        """Write `record` in place of an older one of its row, in the order of the table; rows it no longer has are dropped."""
        places = {row.title: place for place, row in enumerate(order)}
        rows = [known for known in self.rows() if known["row"] != record["row"] and known["row"] in places]
        rows = sorted([*rows, record], key=lambda known: places[known["row"]])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, (json.dumps({**self.head, "rows": rows}, indent=1) + "\n").encode())


MADE = ("seeds", "jobs", "command", "commit", "hardware", "date")
"""Fields of a record that say what made it."""


def joined(known: Record, record: Record) -> Record:
    """Return `known` with the seeds of `record` after its own; `before` says what made the seeds that were there.

    Seconds are those of the runs made last, so that they are of one machine, the one that the record names.
    """
    test = [*known["test"], *record["test"]]
    evaluations = (known["seeds"] * known["evaluations"] + record["seeds"] * record["evaluations"]) / len(test)
    # Curves are means over all seeds, or there are none.
    both = known.get("curves", {}).keys() & record.get("curves", {}).keys()
    curves = {
        name: means_by_epoch([part["curves"][name] for part in (known, record) for _ in range(part["seeds"])]) for name in sorted(both)
    }
    return {
        **{name: value for name, value in record.items() if name != "curves"},
        **({"curves": curves} if curves else {}),
        **{name: known[name] for name in ("validation", "trials")},
        **over_seeds(test),
        "evaluations": evaluations,
        "before": [*known.get("before", []), {name: known[name] for name in MADE}],
    }


def means_by_epoch(curves: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of several curves, epoch by epoch; all are of as many epochs."""
    return [statistics.mean(values) for values in zip(*curves, strict=True)]


def over_seeds(test: Sequence[float]) -> Record:
    """Return the fields of a record that test accuracies, 0..1, of seeds from 0 on make; the spread is the sample standard deviation."""
    return {
        "seeds": len(test),
        "test": list(test),
        "mean": statistics.mean(test),
        "std": statistics.stdev(test) if len(test) > 1 else 0.0,
    }


def read(path: Path) -> dict[str, Any]:
    """Return the document in `path`; raises `StoreError` for one that holds no results."""
    try:
        document = json.loads(path.read_text())
        if not isinstance(document, dict) or not isinstance(document["rows"], list):
            raise ValueError("no rows")
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path}: holds no results ({error}); move it away, or give another --out") from None
    return document


def commit() -> str:
    """Return the commit of this code with `+` where files were changed, or the package's version outside a repository."""
    folder = Path(repsearch.__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return f"repsearch {repsearch.__version__}"


def hardware(device: str) -> str:
    """Return processor, cores and memory of this machine, and its GPU if `device` is one."""
    memory = psutil.virtual_memory().total / 2**30
    text = f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB"
    if device != "cpu":
        import torch

        text += f", {torch.cuda.get_device_name(device)}"
    return text


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
