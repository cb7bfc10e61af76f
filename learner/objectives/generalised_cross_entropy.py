"""Generalised cross-entropy: a loss that wrong labels move less; a baseline for noisy labels.

Zhang & Sabuncu 2018 (arXiv 1805.07836), equation 6: L_q = (1 - p_y^q) / q, with p_y the probability of the label. It tends to cross-entropy
as q goes to 0 and is the mean absolute error (up to a factor) at q = 1. The truncated variant of the paper is not built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from learner.objectives.base import Loss, Outputs
from learner.objectives.from_labels import FromLabels


@dataclass(frozen=True, kw_only=True)
class GeneralisedCrossEntropy(FromLabels):
    """Hyperparameters of generalised cross-entropy.

    q: between cross-entropy (towards 0) and mean absolute error (1); the paper uses 0.7.
    """

    q: Annotated[float, Field(gt=0, le=1)] = 0.7

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor], labels_B: Tensor) -> Loss:
        """Return the loss; see `LearningObjective.loss`. Term: `generalised_cross_entropy`."""
        logits_BK = outputs.head(outputs.blocks[-1])
        log_p_B = -F.cross_entropy(logits_BK, labels_B, reduction="none")
        # 1 - p^q would lose the digits of a small q * log p.
        total = (-torch.expm1(self.q * log_p_B) / self.q).mean()
        return Loss(total, {"generalised_cross_entropy": total}, logits_BK)
