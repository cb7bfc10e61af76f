"""Networks from configuration and data: build, calibrate, compare shapes, digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repsearch.datasets.base import Data
from repsearch.errors import ConfigError
from repsearch.families import NETWORKS
from repsearch.networks.base import SearchableNetwork
from repsearch.networks.parameters import to_arrays
from repsearch.seeding import generator

STEM_IMAGES = 5000
"""Training images whose patches fit the whitening stem (the paper's number)."""


def build_network(table: Mapping[str, Any], data: Data, *, seed: int, purpose: str) -> SearchableNetwork:
    """Return the network of configuration `table` for `data`, with initial parameters from (seed, purpose), in evaluation mode."""
    spec = NETWORKS.build(table, at="network")
    network: SearchableNetwork = spec.build(
        input_shape=data.input_shape,
        classes=len(data.classes),
        mean=data.mean,
        std=data.std,
        stem_images=data.train.images[:STEM_IMAGES],
        rng=generator(seed, "network", purpose),
    )
    return network.eval()


def check_same_representations(searched: SearchableNetwork, learned: SearchableNetwork) -> None:
    """Raise `ConfigError` unless both networks have the same block output shapes."""
    if searched.block_shapes != learned.block_shapes:
        raise ConfigError(
            f"search.network: block outputs {_text(searched)} differ from the learned network's {_text(learned)}; "
            "the two may differ in `convolutions`, not in `width` or `blocks`"
        )


@torch.no_grad()
def calibrate(network: SearchableNetwork, images_NCHW: Tensor) -> None:
    """Set every BatchNorm's statistics to those of `images_NCHW` (uint8, one fixed batch), layer by layer, and leave them frozen.

    Each layer is calibrated on what reaches it in evaluation mode, which for a block is the normalised output of the block before.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    below = network.stem(network.prepare(images_NCHW))
    for norm in norms:
        norm.momentum = 1.0
    for layer in range(network.logits_layer):
        block = network.blocks[layer].train()
        below = block(below)
        block.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def network_digest(network: nn.Module) -> str:
    """Return the hex SHA-256 of every parameter and buffer: names, shapes, dtypes, values."""
    digest = hashlib.sha256()
    for name, array in to_arrays(network).items():
        digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _text(network: SearchableNetwork) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in network.block_shapes)
