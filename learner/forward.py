"""How a training batch goes through the network: in which precision, and compiled or not.

Parameters, gradients and the loss are float32 in either precision; evaluation runs neither in bfloat16 nor compiled, so that what is
measured is what the stored network does anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from learner.batches import Batch
from learner.objectives.base import LearningObjective, Loss, Outputs, outputs_of
from learner.objectives.classifiers import classifiers_of
from repsearch.config import LearnConfig
from repsearch.networks import SearchableNetwork

MEMORY_FORMAT = torch.channels_last
"""How images and convolutions lie in memory. With few channels on a CPU, a step takes 0.6 to 0.75 of its time with `contiguous_format`."""


def loss_function(
    network: SearchableNetwork, objective: LearningObjective, learn: LearnConfig, *, relative: bool = False
) -> Callable[[Batch], Loss]:
    """Return the function from a batch on the network's device to its loss, as `learn.precision` and `learn.compile` say.

    relative: see `learner.objectives.base.Outputs`.
    """
    device, reduced = network.mean.device.type, learn.precision == "bfloat16"

    def blocks_of(images_BCHW: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        outputs = outputs_of(network, images_BCHW, objective.reading)
        return list(outputs.blocks), list(outputs.compared)

    # Batches of one shape: dynamic shapes would only cost.
    run = torch.compile(blocks_of, dynamic=False) if learn.compile else blocks_of

    def loss_of(batch: Batch) -> Loss:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=reduced):
            blocks, compared = run(batch.images)
            outputs = Outputs(blocks, compared, network.head, network.normalises, relative, classifiers_of(network))
            return objective.loss(_in_full_precision(outputs) if reduced else outputs, batch.targets, batch.labels)

    return loss_of


def _in_full_precision(outputs: Outputs) -> Outputs:
    compared = [output_BX.float() for output_BX in outputs.compared]
    return replace(outputs, compared=compared, head=lambda block_BX: outputs.head(block_BX).float())
