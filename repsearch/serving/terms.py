"""The highest term seen of each run: what fences a stale orchestrator."""

from __future__ import annotations

from collections import OrderedDict

from repsearch.serving import TAKEN_OVER
from repsearch.serving.refusals import StaleTerm

KEEP_RUNS = 10_000


class Terms:
    """Highest terms by run; those of the runs heard of longest ago are forgotten beyond `KEEP_RUNS`."""

    def __init__(self) -> None:
        self._highest: OrderedDict[str, int] = OrderedDict()

    def fence(self, run_id: str, term: int) -> None:
        """Refuse a term below the run's highest; remember a higher one."""
        highest = self._highest.get(run_id, 0)
        if term < highest:
            raise StaleTerm(f"run {run_id!r} is at term {highest}, the call is of term {term}: {TAKEN_OVER}; resume to take back")
        self._highest[run_id] = term
        self._highest.move_to_end(run_id)
        if len(self._highest) > KEEP_RUNS:
            self._highest.popitem(last=False)

    def __len__(self) -> int:
        return len(self._highest)
