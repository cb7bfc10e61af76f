"""Networks from configuration and data: build, calibrate, compare shapes, digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repsearch.datasets.base import Data
from repsearch.errors import ConfigError
from repsearch.families import NETWORKS
from repsearch.networks.base import SearchableNetwork
from repsearch.networks.parameters import to_arrays
from repsearch.networks.standardising import Standardise
from repsearch.seeding import generator

STEM_IMAGES = 5000
"""Training images whose patches fit the whitening stem (the paper's number)."""


def build_network(table: Mapping[str, Any], data: Data, *, seed: int, purpose: str) -> SearchableNetwork:
    """Return the network of configuration `table` for `data`, with initial parameters from (seed, purpose), in evaluation mode."""
    spec = NETWORKS.build(table, at="network")
    # Modules initialise themselves from the global generator before a member sets its own numbers; leave no trace there.
    with torch.random.fork_rng(devices=[]):
        network: SearchableNetwork = spec.build(
            input_shape=data.input_shape,
            classes=len(data.classes),
            mean=data.mean,
            std=data.std,
            stem_images=data.train.images[:STEM_IMAGES],
            rng=generator(seed, "network", purpose),
        )
    network.input_shape = data.input_shape
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
    """Set the statistics of every BatchNorm and `Standardise` to those of `images_NCHW` (uint8, one fixed batch), and leave them frozen.

    Layer by layer, from the stem to the head; each layer is calibrated on what the calibrated ones before it put out. Everything else
    runs in evaluation mode.
    """
    network.eval()
    below = _calibrated(network.stem, network.prepare(images_NCHW))
    for block in network.blocks:
        below = _calibrated(block, below)
    _calibrated(network.head, below)


def _calibrated(part: nn.Module, below: Tensor) -> Tensor:
    """Return the output of `part` for `below`, which sets its statistics."""
    norms = [module for module in part.modules() if isinstance(module, (_BatchNorm, Standardise))]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    output: Tensor = part(below)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum
    return output


def network_digest(network: nn.Module) -> str:
    """Return the hex SHA-256 of every parameter and buffer: names, shapes, dtypes, values."""
    digest = hashlib.sha256()
    for name, array in to_arrays(network).items():
        digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _text(network: SearchableNetwork) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in network.block_shapes)
