"""Cross-entropy through the whole network: the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from learner.objectives.base import Loss, Outputs, Reading
from repsearch.networks import BlockOutput


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Hyperparameters of cross-entropy.

    label_smoothing: share of a label's weight that is spread over all classes.
    """

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    reading: ClassVar[Reading] = Reading()

    def needs_targets(self, layers: Sequence[int | str]) -> tuple[str, ...]:
        """Return nothing: the labels suffice, whatever `layers` are searched."""
        return ()

    def check(self, layers: Sequence[int | str], blocks: int, outputs: Sequence[BlockOutput]) -> None:
        """Fits every network."""

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor], labels_B: Tensor) -> Loss:
        """Return the loss; see `LearningObjective.loss`. Term: `cross_entropy` (nats)."""
        logits_BK = outputs.head(outputs.blocks[-1])
        total = F.cross_entropy(logits_BK, labels_B, label_smoothing=self.label_smoothing)
        return Loss(total, {"cross_entropy": total}, logits_BK)
