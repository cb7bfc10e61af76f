"""Linear classifiers of block outputs, from which blocks learn by themselves; learning has them, the network that is stored has not.

Ren et al. 2022 (arXiv 2210.03310), section 4: logits are a linear map of a block's output, averaged over positions, and start at 0. One
classifier serves all groups of a block's channels: each group's logits are made of all channels, but move with the group's own alone, the
others being behind a stop-gradient. Shapes: B examples; X the axes of a block output, channels first; C channels; G groups; K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repsearch.errors import ConfigError
from repsearch.networks import SearchableNetwork

CLASSIFIERS = "local_classifiers"
"""Name of the module that the classifiers are in the network while it learns."""
_T = TypeVar("_T")


class Classifier(nn.Module):
    """A linear map of `channels` channels to `classes` logits, 0 at first; in full precision whatever the network runs in."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, channels))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, output_BX: Tensor) -> Tensor:
        """Return the logits (B, K) of a block's output."""
        with torch.autocast(output_BX.device.type, enabled=False):
            return F.linear(_channels(output_BX), self.weight, self.bias)

    def by_group(self, output_BX: Tensor, undisturbed_BX: Tensor, groups: int) -> Tensor:
        """Return each group's logits (B, G, K), which move with what its channels have more than in `undisturbed_BX`."""
        move_BGC = torch.unflatten(_channels(output_BX) - _channels(undisturbed_BX), 1, (groups, -1))
        moved_BGK = torch.einsum("bgc,kgc->bgk", move_BGC, torch.unflatten(self.weight, 1, (groups, -1)))
        return self.forward(undisturbed_BX).unsqueeze(1) + moved_BGK


class Classifiers(nn.ModuleList):
    """The classifier of each block, told from whatever a network has of its own by its type."""


def fit_classifiers(network: SearchableNetwork, *, wanted: bool, groups: int) -> None:
    """Give `network` a classifier of each block if they are wanted and not there, take them away if they are not.

    Raises `ConfigError` for groups that a block's channels cannot be split in.
    """
    there = bool(classifiers_of(network))
    _check_groups(network, groups)
    if wanted and not there:
        made = Classifiers(Classifier(shape[0], network.classes) for shape in network.block_shapes)
        network.add_module(CLASSIFIERS, made.to(network.mean.device, network.mean.dtype))
    elif there and not wanted:
        delattr(network, CLASSIFIERS)


def classifiers_of(network: SearchableNetwork) -> Sequence[Classifier]:
    """Return the classifiers of the blocks; none if it has none."""
    found = getattr(network, CLASSIFIERS, None)
    return [module for module in found if isinstance(module, Classifier)] if isinstance(found, Classifiers) else []


def without_classifiers(arrays: Mapping[str, _T]) -> dict[str, _T]:
    """Return parameters and buffers by name, less those of the classifiers."""
    return {name: array for name, array in arrays.items() if not name.startswith(f"{CLASSIFIERS}.")}


def _channels(output_BX: Tensor) -> Tensor:
    return output_BX if output_BX.ndim == 2 else output_BX.flatten(2).mean(2)


def _check_groups(network: SearchableNetwork, groups: int) -> None:
    for block, shape in enumerate(network.block_shapes):
        if shape[0] % groups:
            fitting = [number for number in range(1, shape[0] + 1) if all(other[0] % number == 0 for other in network.block_shapes)]
            raise ConfigError(
                f"learn.objective.groups: the {shape[0]} channels of block {block} cannot be split in {groups} groups of one size; "
                f"set it to {', '.join(map(str, fitting))}"
            )
