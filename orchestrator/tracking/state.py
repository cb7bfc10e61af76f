"""How far the journal is mirrored, and into which MLflow runs: `tracking.json` in the run's folder.

A cache: without it, the runs are found again by their tags and every record is applied once more, to the same effect.
"""

from __future__ import annotations

import fcntl
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from repsearch.failpoints import reach

STATE_NAME = "tracking.json"
LOCK_NAME = "tracking.lock"


@dataclass
class State:
    """Where the runs are (uri, experiment), the MLflow run ids of parent and children (by round), the number of the last record applied."""

    uri: str
    experiment: str
    parent: str = ""
    children: dict[int, str] = field(default_factory=dict)
    applied: int = -1

    def forget_runs(self) -> None:
        """Start afresh, as if nothing were applied."""
        self.parent, self.children, self.applied = "", {}, -1

    def save(self, folder: Path) -> None:
        """Replace the state file."""
        reach("tracking.state.before")
        # One process writes, so the temporary name is always the same, and what a killed one leaves is written over.
        temporary = (folder / STATE_NAME).with_suffix(".json.new")
        temporary.write_text(json.dumps(asdict(self), indent=1))
        reach("tracking.state.written")
        temporary.replace(folder / STATE_NAME)
        reach("tracking.state.after")


def load_state(folder: Path, *, uri: str, experiment: str) -> State:
    """Return the stored state, or an empty one if there is none for `uri` and `experiment` or it is unreadable."""
    try:
        table = json.loads((folder / STATE_NAME).read_text())
        state = State(**{**table, "children": {int(round): run for round, run in table["children"].items()}})
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return State(uri=uri, experiment=experiment)
    return state if (state.uri, state.experiment) == (uri, experiment) else State(uri=uri, experiment=experiment)


def try_lock(path: Path) -> IO[str] | None:
    """Return the file at `path` locked for this process (until it is closed or the process ends), or None if another holds it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
