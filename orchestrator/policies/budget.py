"""An end by cost: candidate evaluations per example, or seconds, of all rounds together (`rounds.max_evaluations`, `rounds.max_seconds`).

Cost is read from reports, so that a resumed run ends where it would have ended; it is looked at after each round.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.policies.around import Cut
from repsearch.config import RunConfig

if TYPE_CHECKING:
    from orchestrator.report import RoundReport


@dataclass(frozen=True, kw_only=True)
class Budget(Cut):
    """The inner policy until its rounds have cost what the budget allows."""

    def cut(self, history: Sequence[RoundReport], config: RunConfig) -> tuple[int, str] | None:
        """Return the first round after which a budget is spent; see `Cut.cut`."""
        rounds = config.rounds
        budgets = (
            ("max_evaluations", rounds.max_evaluations, "search/evaluations_per_example", "{:,.0f} candidate evaluations per example"),
            ("max_seconds", rounds.max_seconds, "seconds/round", "{:,.1f} seconds"),
        )
        found: list[tuple[int, str]] = []
        for name, most, metric, text in budgets:
            spent = itertools.accumulate(report.metrics[metric] for report in history)
            over = next(((count, total) for count, total in enumerate(spent, start=1) if most is not None and total >= most), None)
            if over is not None:
                found.append((over[0], f"budget: rounds.{name} = {most:g} is spent by {text.format(over[1])}"))
        return min(found, default=None, key=lambda end: end[0])
