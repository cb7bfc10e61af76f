"""Which layers of a block keep groups of channels apart, and which of the head logits, so that their units reach the loss of one alone.

A layer is in groups if each of as many equal stretches of its output reaches the same stretch of the block's output and nothing else of
it: the last layer of a block whose activation is elementwise, and those before it where the layers between keep groups apart. Which
layers are, is found by running each block, its weights drawn anew, with one stretch of one layer displaced. Any other layer of the block
learns from all groups. Shapes: B examples; G groups; X the axes of a pre-activation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from learner.objectives.base import Reading
from repsearch.networks import SearchableNetwork

DISPLACEMENTS = 4
ROUNDING = 1e-4
"""Of a block's output, relative to its largest component."""


@torch.no_grad()
def grouped_layers(network: SearchableNetwork, reading: Reading) -> frozenset[str]:
    """Return the names of the blocks' linear layers and convolutions that are in `reading.groups` groups, and of the head's by logit."""
    network, rng = copy.deepcopy(network).eval(), torch.Generator().manual_seed(0)
    # What networks begin with, such as filters that are identities, keeps channels apart that learning brings together.
    for parameter in (*network.blocks.parameters(), *network.head.parameters()):
        parameter.copy_(torch.randn(parameter.shape, generator=rng) / math.sqrt(max(1, parameter[0].numel())))
    found = list[str]()
    image_BCHW = torch.randint(0, 256, (1, *network.input_shape), generator=rng).to(network.mean)
    below_BX = network.stem(network.prepare(image_BCHW))
    for block in range(network.logits_layer):
        found += _grouped(network.blocks[block], f"blocks.{block}", partial(_output, network, block, reading), below_BX, reading.groups)
        below_BX, _ = network.run_block(block, below_BX, reading.output)
    return frozenset(found + _grouped(network.head, "head", network.head, below_BX, network.classes) if reading.by_logit else found)


def _output(network: SearchableNetwork, block: int, reading: Reading, below_BX: Tensor) -> Tensor:
    return network.run_block(block, below_BX, reading.output)[1]


def _grouped(stretch: nn.Module, prefix: str, run: Callable[[Tensor], Tensor], below_BX: Tensor, groups: int) -> list[str]:
    """Return the names of the layers of a stretch of the network, which `run` runs, that are in groups."""
    named = stretch.named_modules(prefix=prefix)
    return [name for name, module in named if isinstance(module, (nn.Linear, nn.Conv2d)) and _keeps_groups(module, run, below_BX, groups)]


def _keeps_groups(module: nn.Linear | nn.Conv2d, run: Callable[[Tensor], Tensor], below_BX: Tensor, groups: int) -> bool:
    rng = torch.Generator().manual_seed(0)
    size = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    if size % groups:
        return False

    def displace(module: nn.Module, args: Any, output_BX: Tensor) -> Tensor:
        # Of examples in `DISPLACEMENTS` times G, each has another stretch displaced; the last has none.
        axis = output_BX.ndim - 1 if isinstance(module, nn.Linear) else 1
        parts = torch.unflatten(output_BX.movedim(axis, 1).clone(), 1, (groups, -1))
        for example in range(len(parts) - 1):
            part = parts[example, example % groups]
            part += 10 * torch.randn(part.shape, generator=rng).to(part)
        return parts.flatten(1, 2).movedim(1, axis)

    examples = DISPLACEMENTS * groups + 1
    with module.register_forward_hook(displace):
        output_BX = run(below_BX.expand(examples, *below_BX.shape[1:]))
    own = output_BX[-1:]
    # Rows of a matrix product differ in their last digits, also of equal inputs.
    changed_BX = (output_BX - own).abs() > ROUNDING * own.abs().max()
    changed_BG = torch.unflatten(changed_BX, 1, (groups, -1)).flatten(2).any(2)
    own_BG = torch.arange(examples)[:, None] % groups == torch.arange(groups)
    return not bool((changed_BG[:-1] & ~own_BG[:-1].to(changed_BG.device)).any())
