"""Networks from the store, run on images.

Shapes: N images; D values of a representation; C classes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.analysing.subjects import Moment, Subject
from orchestrator.analysis.collision import centred
from repsearch.config import RunConfig
from repsearch.datasets.base import Data
from repsearch.networks import SearchableNetwork, build_network, layer_name, load_arrays
from store import Reference, Store
from store.parameters import read_parameters

BATCH = 500
"""Most images per forward pass, as many as in the learner's evaluation."""

Floats = NDArray[np.float32]


def network_at(subject: Subject, moment: Moment, data: Data) -> SearchableNetwork:
    """Return the network of `moment`, in evaluation mode, read from the store or made again from the seed."""
    return network_from(subject.run.config, subject.store, moment.network, data)


def network_from(config: RunConfig, store: Store, reference: Reference | None, data: Data) -> SearchableNetwork:
    """Return the learned network of `config` with the parameters at `reference`, or the initial ones of its seed."""
    network = build_network(config.network, data, seed=config.learn_seed(), purpose="learned")
    if reference is not None:
        load_arrays(network, read_parameters(store, reference))
    return network.eval()


@torch.no_grad()
def representations(network: SearchableNetwork, images: Tensor) -> dict[str, Floats]:
    """Return the representation (N, D) of every block, and the logits, by layer name; of each example less its mean."""
    parts = [network.representations(batch) for batch in _batches(images)]
    blocks = network.logits_layer
    return {
        layer_name(layer, blocks): centred(torch.cat([part[layer] for part in parts]).numpy()).astype(np.float32)
        for layer in range(blocks + 1)
    }


@torch.no_grad()
def logits(network: SearchableNetwork, images: Tensor) -> Floats:
    """Return the logits (N, C)."""
    return np.asarray(torch.cat([network(batch) for batch in _batches(images)]).numpy())


def _batches(images: Tensor) -> tuple[Tensor, ...]:
    # Of equal size, so that a network that normalises by the batch's own statistics gets no small one at the end.
    return torch.tensor_split(images, math.ceil(len(images) / BATCH))
