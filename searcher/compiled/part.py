"""The part of an untrained convnet above a searched layer as numbers for `searcher.compiled.loops`.

With identity convolutions left out, a block is a 2x2 maximum, then scale, shift and GELU per channel some times over, then normalisation:
nothing mixes channels but the head.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from repsearch.networks.base import SearchableNetwork, Shape
from repsearch.networks.convnet import ConvBlock, ConvGroup, Head
from searcher.evaluation_network import FrozenNorm

_NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Part:
    """What lies above a layer; B blocks, V, F and K as in `searcher.compiled.loops`.

    widths_B: of the maps that each block reads. features_B: values that it puts out. steps_B: pairs of scale and shift in it. corners_V:
    places of the upper left corners of its 2x2 squares, unsigned, block after block. weight_KF, bias_K: the head, its factor included; no
    row of weights: the searched layer is the logits.
    """

    widths_B: np.ndarray
    features_B: np.ndarray
    steps_B: np.ndarray
    corners_V: np.ndarray
    scale_V: np.ndarray
    shift_V: np.ndarray
    weight_KF: np.ndarray
    bias_K: np.ndarray

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What `fitness` takes of it."""
        return self.widths_B, self.features_B, self.steps_B, self.corners_V, self.scale_V, self.shift_V, self.weight_KF, self.bias_K


def part_above(network: SearchableNetwork, layer: int) -> Part | None:
    """Return the part above `layer` of a network from `evaluation_network`; None if it has anything else than the above in it."""
    if layer == network.logits_layer:
        no_values = np.zeros(0, np.float32)
        return Part(
            widths_B=_NOTHING,
            features_B=_NOTHING,
            steps_B=_NOTHING,
            corners_V=_NOTHING.astype(np.uint32),
            scale_V=no_values,
            shift_V=no_values,
            weight_KF=no_values.reshape(0, 0),
            bias_K=np.zeros(network.classes, np.float32),
        )
    blocks, head = list(network.blocks)[layer + 1 :], network.head
    if not isinstance(head, Head) or not all(isinstance(block, ConvBlock) for block in blocks):
        return None
    groups = [list(block.groups) for block in blocks]  # type: ignore[arg-type]
    flat = [group for of_block in groups for group in of_block]
    if not all(isinstance(group, ConvGroup) for group in flat):
        return None
    plain = all(isinstance(group.conv1, nn.Identity) and isinstance(group.conv2, nn.Identity) for group in flat)
    pooled = all(group.pool == (number == 0) for of_block in groups for number, group in enumerate(of_block))
    norms = [norm for group in flat for norm in (group.norm1, group.norm2)]
    if not plain or not pooled or not all(isinstance(norm, FrozenNorm) for norm in norms):
        return None
    shapes = network.block_shapes[layer:]
    return Part(
        widths_B=np.array([shape[2] for shape in shapes[:-1]], np.int64),
        features_B=np.array([math.prod(shape) for shape in shapes[1:]], np.int64),
        steps_B=np.array([2 * len(of_block) for of_block in groups], np.int64),
        corners_V=np.concatenate([_NOTHING, *(_corners(*pair) for pair in itertools.pairwise(shapes))]).astype(np.uint32),
        scale_V=_spread(network, layer, groups, "scale"),
        shift_V=_spread(network, layer, groups, "shift"),
        weight_KF=np.ascontiguousarray(head.linear.weight.detach().numpy() * head.scale, np.float32),
        bias_K=np.ascontiguousarray(head.linear.bias.detach().numpy() * head.scale, np.float32),
    )


def _corners(below: Shape, above: Shape) -> np.ndarray:
    """Return the places in maps of shape `below` of the upper left corners of the squares that make maps of shape `above`."""
    channel, y, x = np.ogrid[: above[0], : above[1], : above[2]]
    corners: np.ndarray = (channel * below[1] + 2 * y) * below[2] + 2 * x
    return corners.ravel()


def _spread(network: SearchableNetwork, layer: int, groups: Sequence[Sequence[Any]], name: str) -> np.ndarray:
    """Return the norms' scales or shifts in the order of use, each at every position of its map: so the loops over them are long."""
    rows = [np.zeros(0, np.float32)]
    for (_, height, width), of_block in zip(network.block_shapes[layer + 1 :], groups, strict=True):
        rows += [np.repeat(getattr(norm, name).numpy(), height * width) for group in of_block for norm in (group.norm1, group.norm2)]
    return np.concatenate(rows).astype(np.float32)
