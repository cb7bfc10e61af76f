"""Regression on searched representations, with a head that teaches the blocks nothing.

Vegesna & Dahal 2025: loss = mean over the supervised blocks of weight * MSE(output, target)
+ head_weight * KL(softmax(searched logits) || softmax(head(stop-gradient(last block)))). The gradient of one block's error reaches the
blocks before it, so a block left unsupervised learns from those after it; with `isolate` it stops at the block's input.

A target names a value for every unit of a block, so the block's error can be told apart by its channels: with `groups`, a rule that
disturbs the block gets as many numbers per example as there are groups, in a block of one linear layer a number per unit.
Shapes: B examples; X the axes of a block's output; K classes; G groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from learner.objectives.base import Loss, Outputs, Reading, target_name
from learner.objectives.by_group import by_logit, cross_entropies, normalised_errors, raw_errors
from repsearch.config import LOGITS
from repsearch.errors import ConfigError
from repsearch.networks import BlockOutput

NORMALISE_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Regression:
    """Hyperparameters of regression.

    layers: numbers of the supervised blocks; none given: every searched block.
    weights: factor on each block's error, in the order of `layers`, which must be given; none given: 1 each.
    isolate: stop gradients at each block's input, so that a block learns from its own target alone; every block needs one.
    head_weight: factor on the head's term. The head reads the last block behind a stop-gradient.
    head: what the head learns: the searched logits (the labels where the logits are not searched), or the labels.
    match: what is compared with a target. `normalised`: the block's output at zero mean and unit variance per example; `raw`: the output
        as it is, before any normalisation per example; `last_activation_dropped`: what the block's last activation reads, normalised.
    groups: of a block's channels, each with a copy of the block's error that teaches it alone, under `isolate`; a divisor of the channels
        of every block. With more than one, each logit has a copy of the head's loss. Changes what rules that disturb a network estimate
        by, not the gradient.
    """

    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    weights: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)] | None = None
    isolate: bool = False
    head_weight: Annotated[float, Field(ge=0)] = 0.03
    head: Literal["searched", "labels"] = "searched"
    match: Literal["normalised", "raw", "last_activation_dropped"] = "normalised"
    groups: Annotated[int, Field(ge=1)] = 1

    def __post_init__(self) -> None:
        if self.groups > 1 and not self.isolate:
            raise ValueError(f"groups is {self.groups}, and groups of a block learn from that block's error alone; set isolate = true")
        if self.weights is None:
            return
        if self.layers is None:
            raise ValueError("weights stand in the order of layers; give layers too")
        if len(self.weights) != len(set(self.layers)) or len(self.weights) != len(self.layers):
            raise ValueError(f"weights has {len(self.weights)} values for layers {self.layers}; give one for each, and each layer once")
        if not any(self.weights):
            raise ValueError("weights are all 0; give one block a weight above 0")

    @property
    def reading(self) -> Reading:
        """See `LearningObjective.reading`."""
        output = _COMPARED[self.match]
        # Normalised outputs of one group move with the others, so groups are told apart before that.
        output = "raw" if self.groups > 1 and output == "representation" else output
        return Reading(output, self.isolate, isolate_head=True, groups=self.groups, by_logit=self.groups > 1)

    def needs_targets(self, layers: Sequence[int | str]) -> tuple[str, ...]:
        """Return the supervised blocks' arrays, and the logits if they are searched; see `LearningObjective.needs_targets`."""
        searched = [int(layer) for layer in layers if layer != LOGITS]
        if not searched:
            raise ConfigError(
                "search.layers: no block among them, and objective `regression` learns from searched blocks; add one, such as 0"
            )
        supervised = self._supervised(layers)
        for layer in supervised:
            if layer not in searched:
                known = ", ".join(map(str, searched))
                raise ConfigError(
                    f"learn.objective.layers: block {layer} is not searched; search.layers has blocks {known}: add it there or drop it here"
                )
        logits = [LOGITS] if LOGITS in layers and self.head == "searched" else []
        return (*map(target_name, supervised), *map(target_name, logits))

    def check(self, layers: Sequence[int | str], blocks: int, outputs: Sequence[BlockOutput]) -> None:
        """Raise `ConfigError` for a `match` that the network cannot serve, or a block without a target under `isolate`."""
        if self.groups > 1 and "raw" not in outputs:
            raise ConfigError(
                "learn.objective.groups: reads the outputs of blocks before they are normalised, which this network's do not give; "
                "take a network of this project, or set groups = 1"
            )
        if self.reading.output not in outputs:
            matches = ", ".join(match for match, output in _COMPARED.items() if output in outputs)
            raise ConfigError(f"learn.objective.match: the network's blocks do not give what {self.match!r} compares; set it to {matches}")
        learning = {layer for layer in self._supervised(layers) if self._weights().get(layer, 1.0) > 0}
        alone = [block for block in range(blocks) if block not in learning]
        if self.isolate and alone:
            raise ConfigError(
                f"learn.objective.isolate: block {alone[0]} has no target to learn from, and isolate keeps those of the other blocks from "
                "it; search and supervise every block (search.layers, learn.objective.layers and weights), or set isolate = false"
            )

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor], labels_B: Tensor) -> Loss:
        """Return the loss; see `LearningObjective.loss`. Terms: `block0`, ... (mean squared error) and `head` (nats)."""
        terms, copies, weights = dict[int, Tensor](), dict[int, Tensor](), self._weights()
        for layer, output_BX in enumerate(outputs.compared):
            target_BX = targets.get(target_name(layer))
            if target_BX is None:
                continue
            still_BX = outputs.undisturbed[layer] if outputs.undisturbed else output_BX.detach()
            target_BX = target_BX.to(output_BX.dtype)
            if outputs.relative:
                target_BX = normalised(self._matched(still_BX, outputs) + target_BX)
            if self.groups > 1:
                copies[layer] = self._by_group(output_BX, still_BX, target_BX).mean(0)
            # Of a pass that a rule makes, the total is for the record: every copy has its value.
            disturbed = self.groups > 1 and bool(outputs.undisturbed)
            terms[layer] = copies[layer][0] if disturbed else F.mse_loss(self._matched(output_BX, outputs), target_BX)
        logits_BK = outputs.head(outputs.blocks[-1].detach())
        head = head_loss(logits_BK, targets.get(LOGITS), labels_B)
        weighted = {layer: weights.get(layer, 1.0) * term for layer, term in terms.items()}
        total = torch.stack(list(weighted.values())).mean() + self.head_weight * head
        head_share = self.head_weight * head
        if self.groups > 1:
            still_BK = outputs.undisturbed[-1] if outputs.undisturbed else logits_BK.detach()
            head_share = self.head_weight * head_losses(by_logit(logits_BK, still_BK), targets.get(LOGITS), labels_B).mean(0)
        shares = {target_name(layer): weights.get(layer, 1.0) * copies.get(layer, term) / len(terms) for layer, term in terms.items()}
        named = {target_name(layer): term for layer, term in terms.items()}
        return Loss(total, {**named, "head": head}, logits_BK, {**shares, "head": head_share})

    def _supervised(self, layers: Sequence[int | str]) -> list[int]:
        return [int(layer) for layer in layers if layer != LOGITS] if self.layers is None else sorted(set(self.layers))

    def _weights(self) -> dict[int, float]:
        return dict(zip(self.layers or [], self.weights or [], strict=False))

    def _matched(self, output_BX: Tensor, outputs: Outputs) -> Tensor:
        if self.match == "raw" or (self.match == "normalised" and outputs.normalised and self.groups == 1):
            return output_BX
        return normalised(output_BX)

    def _by_group(self, output_BX: Tensor, still_BX: Tensor, target_BX: Tensor) -> Tensor:
        if self.match == "raw":
            return raw_errors(output_BX, still_BX, target_BX, self.groups)
        return normalised_errors(output_BX, still_BX, target_BX, self.groups, NORMALISE_EPS)


_COMPARED: dict[str, BlockOutput] = {"normalised": "representation", "raw": "raw", "last_activation_dropped": "before_activation"}
"""What a network has to give for each `match`."""


def head_loss(logits_BK: Tensor, searched_BK: Tensor | None, labels_B: Tensor) -> Tensor:
    """Return KL(softmax(searched_BK) || softmax(logits_BK)), mean over examples; without searched logits, the labels' cross-entropy."""
    if searched_BK is None:
        return F.cross_entropy(logits_BK, labels_B)
    target_BK = F.log_softmax(searched_BK.to(logits_BK.dtype), dim=1)
    # F.kl_div of these, spelled out: it has no batching rule, which rules that take losses by example need.
    return (target_BK.exp() * (target_BK - F.log_softmax(logits_BK, dim=1))).sum() / len(logits_BK)


def head_losses(logits_BLK: Tensor, searched_BK: Tensor | None, labels_B: Tensor) -> Tensor:
    """Return the same of each example and copy (B, L)."""
    if searched_BK is None:
        return cross_entropies(logits_BLK, labels_B)
    target_B1K = F.log_softmax(searched_BK.to(logits_BLK.dtype), dim=1).unsqueeze(1)
    return (target_B1K.exp() * (target_B1K - F.log_softmax(logits_BLK, dim=-1))).sum(-1)


def normalised(maps_BX: Tensor) -> Tensor:
    """Return each example's map less its mean, over its standard deviation, over all axes but the first."""
    return F.layer_norm(maps_BX, maps_BX.shape[1:], eps=NORMALISE_EPS)
