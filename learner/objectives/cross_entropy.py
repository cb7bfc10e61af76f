"""Cross-entropy through the whole network: the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from learner.objectives.base import Loss, Outputs
from learner.objectives.from_labels import FromLabels


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(FromLabels):
    """Hyperparameters of cross-entropy.

    label_smoothing: share of a label's weight that is spread over all classes.
    """

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor], labels_B: Tensor) -> Loss:
        """Return the loss; see `LearningObjective.loss`. Term: `cross_entropy` (nats)."""
        logits_BK = outputs.head(outputs.blocks[-1])
        total = F.cross_entropy(logits_BK, labels_B, label_smoothing=self.label_smoothing)
        return Loss(total, {"cross_entropy": total}, logits_BK)
