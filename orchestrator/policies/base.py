"""What a round policy is: a pure function of the reports so far, so that resuming is replaying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from repsearch.config import RunConfig

if TYPE_CHECKING:
    from orchestrator.report import RoundReport


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """One round.

    round: number, from 0.
    search: whether targets are searched; without it the round only learns.
    searched_round: the round whose learned network is searched; None: the untrained network.
    warm_round: the round whose learned network learning goes on from; None: initial parameters.
    epochs: passes over the training set.
    """

    round: int
    search: bool
    searched_round: int | None
    warm_round: int | None
    epochs: int

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)


class RoundPolicy(Protocol):
    """A member of the policy family.

    searches: whether its rounds search targets; such a policy goes with an objective that regresses on targets.
    """

    searches: ClassVar[bool]

    def check(self, config: RunConfig) -> None:
        """Raise `ConfigError` where the policy does not fit the rest of the configuration."""
        ...

    def next(self, history: Sequence[RoundReport], config: RunConfig) -> RoundPlan | None:
        """Return the plan of the round after `history` (all reports, in order of round), or None at the end of the run."""
        ...


def warm_round(number: int, config: RunConfig) -> int | None:
    """Return the round that round `number` goes on learning from under `learn.start`."""
    return number - 1 if number > 0 and config.learn.start != "fresh" else None
