"""What happens when rounds bring no better validation accuracy: the end, or a wider search (`rounds.plateau`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.policies.around import Cut
from orchestrator.policies.base import RoundPlan
from repsearch.config import RunConfig, merged
from repsearch.errors import ConfigError
from repsearch.families import STRATEGIES

if TYPE_CHECKING:
    from orchestrator.report import RoundReport


@dataclass(frozen=True, kw_only=True)
class Plateau(Cut):
    """The inner policy, its search widened at each plateau, until one after the last widening ends it."""

    def check(self, config: RunConfig) -> None:
        """Raise `ConfigError` where there is no search, or none that can be wider."""
        self.inner.check(config)
        if config.rounds.at_plateau == "stop":
            return
        name = config.search.strategy["name"]
        if not self.searches:
            raise ConfigError(
                f'rounds.at_plateau: the policy {config.rounds.policy["name"]} has no search to widen; set rounds.at_plateau = "stop"'
            )
        if not hasattr(STRATEGIES.member(name), "wider"):
            raise ConfigError(
                f'rounds.at_plateau: the strategy {name} has no number of candidates to widen; set rounds.at_plateau = "stop"'
            )

    def cut(self, history: Sequence[RoundReport], config: RunConfig) -> tuple[int, str] | None:
        """Return the round after which the last plateau ends the run; see `Cut.cut`."""
        allowed = config.rounds.widen_times if config.rounds.at_plateau == "widen" else 0
        ends = plateaus(history, config)
        if len(ends) <= allowed:
            return None
        reached = [(accuracy, -round) for round, report in enumerate(history[: ends[allowed]]) if (accuracy := report.accuracy) is not None]
        value, first = max(reached)
        what = f"a {'validation' if history[-first].evaluated else 'fitness'} accuracy above the {value:.2%} of round {-first}"
        return ends[allowed], f"plateau: rounds.plateau = {config.rounds.plateau} rounds without {what}"

    def next(self, history: Sequence[RoundReport], config: RunConfig) -> RoundPlan | None:
        """Return the inner policy's plan, widened once for each plateau before it."""
        plan = super().next(history, config)
        times = len(plateaus(history, config)) if config.rounds.at_plateau == "widen" else 0
        return plan if plan is None else widened(plan, min(times, config.rounds.widen_times), config)

    def variants(self, plan: RoundPlan, config: RunConfig) -> list[RoundPlan]:
        """Return the inner policy's variants, and those and the plan itself at every width."""
        variants = super().variants(plan, config)
        if config.rounds.at_plateau == "stop":
            return variants
        return variants + [widened(each, times, config) for each in (plan, *variants) for times in range(1, config.rounds.widen_times + 1)]


def plateaus(history: Sequence[RoundReport], config: RunConfig) -> list[int]:
    """Return after how many rounds each plateau ended: rounds in a row without a better validation accuracy, counted anew after each."""
    best, since, ends = -math.inf, 0, list[int]()
    for rounds, report in enumerate(history, start=1):
        if (accuracy := report.accuracy) is None:
            continue
        since += 1
        if accuracy > best:
            best, since = accuracy, 0
        elif since == config.rounds.plateau:
            ends.append(rounds)
            since = 0
    return ends


def widened(plan: RoundPlan, times: int, config: RunConfig) -> RoundPlan:
    """Return the plan with the numbers of candidates of its strategy `rounds.widen_by` times as large, `times` times over."""
    if times == 0 or not plan.search:
        return plan
    strategy = STRATEGIES.build(plan.config(config).search.strategy, at="search.strategy")
    # Without the name: fields of the strategy that is there, whether or not the plan names it.
    return replace(plan, changes=merged(plan.changes, {"strategy": strategy.wider(config.rounds.widen_by**times)}))
