"""A schedule of search effort: other settings of the search, or another number of epochs, from some round on (`rounds.schedule`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.policies.around import Around
from orchestrator.policies.base import RoundPlan
from repsearch.config import RunConfig, ScheduleEntry, merged
from repsearch.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.report import RoundReport


@dataclass(frozen=True, kw_only=True)
class Scheduled(Around):
    """The inner policy's rounds with what the newest entry of the schedule changes; what the inner policy itself changes stands."""

    def check(self, config: RunConfig) -> None:
        """Raise `ConfigError` for an entry beyond the last round, or one that changes the search of a policy without."""
        self.inner.check(config)
        for number, entry in enumerate(config.rounds.schedule):
            at = f"rounds.schedule.{number}"
            if entry.from_round >= config.rounds.count:
                raise ConfigError(f"{at}.from_round: {entry.from_round}, but the last round is {config.rounds.count - 1}; lower it")
            if entry.search and not self.searches:
                name = config.rounds.policy["name"]
                raise ConfigError(f"{at}.search: the policy {name} searches nothing; drop it, or choose a policy that searches")

    def next(self, history: Sequence[RoundReport], config: RunConfig) -> RoundPlan | None:
        """Return the inner policy's plan with the entry's changes."""
        plan = self.inner.next(history, config)
        return None if plan is None else self._changed(plan, config)

    def variants(self, plan: RoundPlan, config: RunConfig) -> list[RoundPlan]:
        """Return the inner policy's variants with the entry's changes."""
        return [self._changed(variant, config) for variant in super().variants(plan, config)]

    def _changed(self, plan: RoundPlan, config: RunConfig) -> RoundPlan:
        entry = _entry(plan.round, config)
        if entry is None:
            return plan
        changes = merged(entry.search, plan.changes) if plan.search else plan.changes
        return replace(plan, changes=changes, epochs=entry.epochs or plan.epochs)


def _entry(round: int, config: RunConfig) -> ScheduleEntry | None:
    found = [entry for entry in config.rounds.schedule if entry.from_round <= round]
    return found[-1] if found else None
