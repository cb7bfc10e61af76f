"""Where the search of a layer starts: the network's own representations, of the images, of noisy ones, or above the layer before.

Shapes: T examples of a tile; S starting candidates; X a representation's own shape.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from repsearch.networks.base import SearchableNetwork
from repsearch.networks.convnet import normalised
from searcher.normal import standard_normal
from searcher.plan import SearchPlan

INPUTS_AT_A_TIME = 48


def first_candidates(plan: SearchPlan, network: SearchableNetwork, images_TCHW: Tensor, index_T: Tensor, *, replicate: int = 0) -> Tensor:
    """Return (T, S, ...) at the first search layer: the network's own representation, or that of noisy inputs (the first without noise)."""
    return next(own_candidates(plan, network, images_TCHW, index_T, replicate=replicate))


def own_candidates(
    plan: SearchPlan, network: SearchableNetwork, images_TCHW: Tensor, index_T: Tensor, *, replicate: int = 0
) -> Iterator[Tensor]:
    """Yield (T, S, ...) at each search layer in turn, of the same inputs; every block runs once. See `first_candidates`."""
    inputs_TCHW = network.prepare(images_TCHW)
    counts = [1 if plan.from_network else plan.strategy.starts(position) for position in range(len(plan.layers) if not plan.chained else 1)]
    if plan.from_network:
        inputs = inputs_TCHW
    else:
        inputs = (inputs_TCHW[:, None] + input_noise(plan, inputs_TCHW, max(counts), index_T, replicate=replicate)).flatten(0, 1)
    # In pieces whose intermediate maps fit a core's cache: on a CPU half as long as all at once.
    pieces = [inputs] if plan.from_network else list(torch.split(inputs, INPUTS_AT_A_TIME))
    below, reached = [network.stem(piece) for piece in pieces], -1
    for layer, count in zip(plan.layers, counts, strict=False):
        below, reached = [run_layers(network, reached, layer, piece) for piece in below], layer
        starts = torch.cat([search_form(network, layer, piece) for piece in below])
        yield starts.reshape(len(images_TCHW), -1, *starts.shape[1:])[:, :count]


def next_candidates(network: SearchableNetwork, below: int, layer: int, seeds_TSX: Tensor) -> Tensor:
    """Return (T, S, ...) at `layer` from what was found at search layer `below`."""
    starts = search_form(network, layer, run_layers(network, below, layer, seeds_TSX.flatten(0, 1)))
    return starts.reshape(*seeds_TSX.shape[:2], *starts.shape[1:])


def input_noise(plan: SearchPlan, inputs_TCHW: Tensor, count: int, index_T: Tensor, *, replicate: int = 0) -> Tensor:
    """Return noise (T, count, C, H, W) for the inputs, keyed by example; the first of the `count` is zero.

    Standard normal numbers by Box-Muller from counter-based integers, times `input_noise` and the image's channel deviation.
    """
    T, C = inputs_TCHW.shape[:2]
    size = inputs_TCHW[0].numel()
    keys_T = plan.keys(index_T, replicate, "input")
    noise = standard_normal(keys_T, count * size, inputs_TCHW.device).view(T, count, *inputs_TCHW.shape[1:])
    deviation_TC = inputs_TCHW.flatten(2).std(dim=2, correction=0)
    noise = noise * (plan.input_noise * deviation_TC).view(T, 1, C, 1, 1)
    noise[:, 0] = 0
    return noise


def run_layers(network: SearchableNetwork, below_layer: int, layer: int, representation_BX: Tensor) -> Tensor:
    """Return the representation of `layer` from that of `below_layer`."""
    for number in range(below_layer + 1, layer + 1):
        representation_BX = network.run_layer(number, representation_BX)
    return representation_BX


def search_form(network: SearchableNetwork, layer: int, representation_BX: Tensor) -> Tensor:
    """Return representations as candidates are: normalised, so that the initial population is too; logits recentred."""
    if layer == network.logits_layer:
        return representation_BX - representation_BX.mean(dim=1, keepdim=True)
    return normalised(representation_BX)
