"""What policies around another one have in common: they ask it, and pass on what they do not change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.policies.base import RoundPlan, RoundPolicy, closing_of, reason_of, variants_of
from repsearch.config import RunConfig

if TYPE_CHECKING:
    from orchestrator.report import RoundReport


@dataclass(frozen=True, kw_only=True)
class Around:
    """A policy around `inner`, the same in everything."""

    inner: RoundPolicy

    @property
    def searches(self) -> bool:
        """Whether the inner policy's rounds search."""
        return self.inner.searches

    def check(self, config: RunConfig) -> None:
        """Raise what the inner policy raises."""
        self.inner.check(config)

    def next(self, history: Sequence[RoundReport], config: RunConfig) -> RoundPlan | None:
        """Return the inner policy's plan; see `RoundPolicy.next`."""
        return self.inner.next(history, config)

    def reason(self, history: Sequence[RoundReport], config: RunConfig) -> str:
        """Return the inner policy's reason; see `reason_of`."""
        return reason_of(self.inner, history, config)

    def closing(self, history: Sequence[RoundReport], config: RunConfig) -> RoundPlan | None:
        """Return the inner policy's closing round unless it has ended; see `closing_of`."""
        return None if self.next(history, config) is None else closing_of(self.inner, history, config)

    def variants(self, plan: RoundPlan, config: RunConfig) -> list[RoundPlan]:
        """Return the inner policy's variants; see `variants_of`."""
        return variants_of(self.inner, plan, config)


@dataclass(frozen=True, kw_only=True)
class Cut(Around, ABC):
    """A policy that may end the inner one early, after `cut` rounds; the inner policy's closing round then follows."""

    @abstractmethod
    def cut(self, history: Sequence[RoundReport], config: RunConfig) -> tuple[int, str] | None:
        """Return after how many rounds of `history` the run ends, and why; None if it goes on."""

    def next(self, history: Sequence[RoundReport], config: RunConfig) -> RoundPlan | None:
        """Return the inner policy's plan, its closing round after the cut, and None after that."""
        found = self.cut(history, config)
        if found is None:
            return self.inner.next(history, config)
        rounds, _ = found
        return closing_of(self.inner, history, config) if rounds == len(history) else None

    def reason(self, history: Sequence[RoundReport], config: RunConfig) -> str:
        """Return the reason of the cut, or that of the inner policy, whichever came first."""
        found = self.cut(history, config)
        if found is None or self.inner.next(history[: found[0]], config) is None:
            return reason_of(self.inner, history if found is None else history[: found[0]], config)
        return found[1]
