"""Rounds that overlap: windows to come are searched while the learner learns the ones before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from orchestrator.policies.base import RoundPlan, StreamPlan
from orchestrator.policies.closed_loop import ClosedLoop
from repsearch.config import RunConfig
from repsearch.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.report import RoundReport


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """`rounds.count` rounds, each of a window (`rounds.examples_per_round`), searched on the newest network there is.

    max_staleness: rounds that the network searched may lag behind the round before; nobody waits until that is reached. 0: search and
        learning alternate, with the results of `closed_loop`.
    commit_seconds: time between two commits, and so the most that is searched and learned again after a crash. 0: every round.
    """

    max_staleness: Annotated[int, Field(ge=0)] = 1
    commit_seconds: Annotated[float, Field(ge=0)] = 5.0

    searches: ClassVar[bool] = True

    def check(self, config: RunConfig) -> None:
        """Raise `ConfigError` unless learning goes on from round to round, without snapshots by epoch."""
        if config.learn.start != "continue":
            raise ConfigError(
                f'learn.start: "{config.learn.start}", but the policy streaming keeps network and optimiser in memory; '
                'set learn.start = "continue", or choose the policy closed_loop'
            )
        if config.learn.snapshots:
            raise ConfigError("learn.snapshots: the policy streaming keeps the network of every round, not of epochs; set it to 0")

        if config.rounds.schedule or (config.rounds.plateau is not None and config.rounds.at_plateau == "widen"):
            raise ConfigError(
                "rounds: the policy streaming has the same settings in every round; leave out rounds.schedule and "
                'rounds.at_plateau = "widen", or choose the policy closed_loop'
            )

    def next(self, history: Sequence[RoundReport], config: RunConfig) -> RoundPlan | None:
        """Return the plan of the next round; see `RoundPolicy.next`."""
        plan = ClosedLoop().next(history, config)
        stream = StreamPlan(max_staleness=self.max_staleness, commit_seconds=self.commit_seconds)
        return replace(plan, stream=stream) if plan is not None else None
