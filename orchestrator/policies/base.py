"""What a round policy is: a pure function of the reports so far, so that resuming is replaying.

A policy of the family plans the rounds; `[rounds]` may put others around it, which change its plans or end it early (`composing`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from repsearch.config import RunConfig, with_search

if TYPE_CHECKING:
    from orchestrator.report import RoundReport


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """How rounds overlap. max_staleness: rounds that the network searched may lag behind; commit_seconds: between two commits."""

    max_staleness: int
    commit_seconds: float


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """One round.

    round: number, from 0.
    search: whether targets are searched; without it the round only learns.
    searched_round: the round whose learned network is searched; None: the untrained network.
    warm_round: the round whose learned network learning goes on from; None: initial parameters.
    epochs: passes over the round's examples.
    drawn_as: the round whose random numbers learning draws; None: its own.
    fitness_alone: the network learned is measured on the examples of `dataset.fitness`, and on no others.
    changes: what the round changes of the section `search`, as a partial table (see `repsearch.config.with_search`).
    stream: this round and all after it are streamed: search and learning of different rounds go on at once, and which network a round
        searches is known when it begins; None: the round has jobs of its own.
    """

    round: int
    search: bool
    searched_round: int | None
    warm_round: int | None
    epochs: int
    drawn_as: int | None = None
    fitness_alone: bool = False
    stream: StreamPlan | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    def config(self, config: RunConfig) -> RunConfig:
        """Return the configuration of the round in a run of `config`."""
        return with_search(config, self.changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)


class RoundPolicy(Protocol):
    """A member of the policy family.

    searches: whether its rounds search targets; such a policy goes with an objective that regresses on targets.
    Three more methods are optional, see `reason_of`, `closing_of` and `variants_of`.
    """

    @property
    def searches(self) -> bool: ...

    def check(self, config: RunConfig) -> None:
        """Raise `ConfigError` where the policy does not fit the rest of the configuration."""
        ...

    def next(self, history: Sequence[RoundReport], config: RunConfig) -> RoundPlan | None:
        """Return the plan of the round after `history` (all reports, in order of round), or None at the end of the run."""
        ...


def reason_of(policy: RoundPolicy, history: Sequence[RoundReport], config: RunConfig) -> str:
    """Return why no round follows `history`, by the policy's method `reason` if it has one; "" if one follows."""
    if policy.next(history, config) is not None:
        return ""
    reason: str = policy.reason(history, config) if hasattr(policy, "reason") else f"all {len(history)} rounds are done"
    return reason


def closing_of(policy: RoundPolicy, history: Sequence[RoundReport], config: RunConfig) -> RoundPlan | None:
    """Return the round with which a run that must end after `history` ends, by the policy's method `closing` if it has one."""
    plan: RoundPlan | None = policy.closing(history, config) if hasattr(policy, "closing") else None
    return plan


def variants_of(policy: RoundPolicy, plan: RoundPlan, config: RunConfig) -> list[RoundPlan]:
    """Return what else `plan` may be, depending on reports, by the policy's method `variants` if it has one.

    All of them are checked before a run starts.
    """
    plans: list[RoundPlan] = policy.variants(plan, config) if hasattr(policy, "variants") else []
    return plans


def warm_round(number: int, config: RunConfig) -> int | None:
    """Return the round that round `number` goes on learning from under `learn.start`."""
    return number - 1 if number > 0 and config.learn.start != "fresh" else None
