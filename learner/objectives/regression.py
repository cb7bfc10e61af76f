"""Regression on searched representations, with a head that teaches the blocks nothing.

Vegesna & Dahal 2025: loss = mean over the supervised blocks of MSE(output, target)
+ head_weight * KL(softmax(searched logits) || softmax(head(stop-gradient(last block)))). The gradient of one block's error reaches the
blocks before it, so a block left unsupervised learns from those after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from learner.objectives.base import Loss, Outputs, target_name
from repsearch.config import LOGITS
from repsearch.errors import ConfigError

NORMALISE_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Regression:
    """Hyperparameters of regression.

    layers: numbers of the supervised blocks; none given: every searched block.
    head_weight: factor on the head's term. The head reads the last block behind a stop-gradient.
    match: what is compared with a target; `normalised`: the block's output at zero mean and unit variance per example.
    """

    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    head_weight: Annotated[float, Field(ge=0)] = 0.03
    match: Literal["normalised"] = "normalised"

    def needs_targets(self, layers: Sequence[int | str]) -> tuple[str, ...]:
        """Return the supervised blocks' arrays, and the logits if they are searched; see `LearningObjective.needs_targets`."""
        searched = [layer for layer in layers if layer != LOGITS]
        if not searched:
            raise ConfigError(
                "search.layers: no block among them, and objective `regression` learns from searched blocks; add one, such as 0"
            )
        supervised = searched if self.layers is None else sorted(set(self.layers))
        for layer in supervised:
            if layer not in searched:
                known = ", ".join(map(str, searched))
                raise ConfigError(
                    f"learn.objective.layers: block {layer} is not searched; search.layers has blocks {known}: add it there or drop it here"
                )
        logits = [LOGITS] if LOGITS in layers else []
        return tuple(target_name(layer) for layer in [*supervised, *logits])

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor], labels_B: Tensor) -> Loss:
        """Return the loss; see `LearningObjective.loss`. Terms: `block0`, ... (mean squared error) and `head` (nats)."""
        terms = {}
        for layer, output_BX in enumerate(outputs.blocks):
            target_BX = targets.get(target_name(layer))
            if target_BX is not None:
                matched_BX = output_BX if outputs.normalised else normalised(output_BX)
                terms[target_name(layer)] = F.mse_loss(matched_BX, target_BX.to(matched_BX.dtype))
        logits_BK = outputs.head(outputs.blocks[-1].detach())
        head = head_loss(logits_BK, targets.get(LOGITS), labels_B)
        total = torch.stack(list(terms.values())).mean() + self.head_weight * head
        return Loss(total, {**terms, "head": head}, logits_BK)


def head_loss(logits_BK: Tensor, searched_BK: Tensor | None, labels_B: Tensor) -> Tensor:
    """Return KL(softmax(searched_BK) || softmax(logits_BK)), mean over examples; without searched logits, the labels' cross-entropy."""
    if searched_BK is None:
        return F.cross_entropy(logits_BK, labels_B)
    target_BK = F.log_softmax(searched_BK.to(logits_BK.dtype), dim=1)
    return F.kl_div(F.log_softmax(logits_BK, dim=1), target_BK, reduction="batchmean", log_target=True)


def normalised(maps_BX: Tensor) -> Tensor:
    """Return each example's map less its mean, over its standard deviation, over all axes but the first."""
    return F.layer_norm(maps_BX, maps_BX.shape[1:], eps=NORMALISE_EPS)
