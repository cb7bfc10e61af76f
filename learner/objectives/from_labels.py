"""What objectives share that learn from labels alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from learner.objectives.base import Reading
from repsearch.networks import BlockOutput


@dataclass(frozen=True, kw_only=True)
class FromLabels:
    """Base of an objective of labels and logits alone, which fits every network."""

    reading: ClassVar[Reading] = Reading(last_only=True)

    def needs_targets(self, layers: Sequence[int | str]) -> tuple[str, ...]:
        """Return nothing: the labels suffice, whatever `layers` are searched."""
        return ()

    def check(self, layers: Sequence[int | str], blocks: int, outputs: Sequence[BlockOutput]) -> None:
        """Fits every network."""
