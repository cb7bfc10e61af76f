"""An end by cost: candidate evaluations per example, or seconds, of all rounds together (`rounds.max_evaluations`, `rounds.max_seconds`).

Cost is read from reports, so that a resumed run ends where it would have ended; it is looked at after each round that is measured,
so that the last network of a run is.
"""

from __future__ import annotations

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
            if most is None:
                continue
            spent = 0.0
            for count, report in enumerate(history, start=1):
                # A round covers its window alone; its seconds are its own.
                spent += report.metrics[metric] * (report.share if name == "max_evaluations" else 1)
                if spent >= most and report.accuracy is not None:
                    found.append((count, f"budget: rounds.{name} = {most:g} is spent by {text.format(spent)}"))
                    break
        return min(found, default=None, key=lambda end: end[0])
