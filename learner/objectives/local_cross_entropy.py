"""Cross-entropy of every block by itself, with a linear classifier of its output: no gradient passes from block to block.

Ren et al. 2022 (arXiv 2210.03310), the local greedy loss, equations 4 and 5: the loss of a block is the cross-entropy of its classifier, in
G copies, one per group of channels, each of which teaches its own group alone. A rule that estimates gradients by disturbing a block then
has G numbers per example to tell the block's units apart by, in place of one. The gradient is the same for every G. The network's head,
which is what is evaluated, learns to classify the last block's output behind a stop-gradient.
Shapes: B examples; G groups; K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from learner.objectives.base import Loss, Outputs, Reading, target_name
from learner.objectives.by_group import cross_entropies
from repsearch.errors import ConfigError
from repsearch.networks import BlockOutput


@dataclass(frozen=True, kw_only=True)
class LocalCrossEntropy:
    """Hyperparameters of local cross-entropy.

    groups: of a block's channels, each with a loss that teaches it alone; a divisor of the channels of every block. Changes what rules
        that disturb a network estimate by, not the gradient.
    """

    groups: Annotated[int, Field(ge=1)] = 1

    @property
    def reading(self) -> Reading:
        """See `LearningObjective.reading`. Classifiers read outputs before normalisation, in which groups would reach one another."""
        return Reading("raw", isolate=True, isolate_head=True, classifiers=True, groups=self.groups)

    def needs_targets(self, layers: Sequence[int | str]) -> tuple[str, ...]:
        """Return nothing: the labels suffice, whatever `layers` are searched."""
        return ()

    def check(self, layers: Sequence[int | str], blocks: int, outputs: Sequence[BlockOutput]) -> None:
        """Raise `ConfigError` for a network whose blocks do not give their outputs before normalisation."""
        if "raw" not in outputs:
            raise ConfigError(
                "learn.objective: local_cross_entropy reads the outputs of blocks before they are normalised, which this network's do not "
                "give; take a network of this project, or objective cross_entropy"
            )

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor], labels_B: Tensor) -> Loss:
        """Return the loss, a sum; see `LearningObjective.loss`. Terms: `block0`, ... and `head` (nats)."""
        logits_BK = outputs.head(outputs.blocks[-1].detach())
        terms, shares, groups = dict[str, Tensor](), dict[str, Tensor](), self.groups
        for block, (classify, output_BX) in enumerate(zip(outputs.classifiers, outputs.compared, strict=True)):
            name, disturbed = target_name(block), bool(outputs.undisturbed)
            if disturbed or groups > 1:
                still_BX = outputs.undisturbed[block] if disturbed else output_BX.detach()
                losses_G = cross_entropies(classify.by_group(output_BX, still_BX, groups), labels_B).mean(0)
                shares[name] = losses_G if groups > 1 else losses_G[0]
            # Of a pass that a rule makes, the total is for the record: every group's loss has its value.
            terms[name] = losses_G[0] if disturbed else cross_entropies(classify(output_BX), labels_B).mean()
            shares.setdefault(name, terms[name])
        terms["head"] = shares["head"] = cross_entropies(logits_BK, labels_B).mean()
        return Loss(torch.stack(list(terms.values())).sum(), terms, logits_BK, shares)
