"""Parameters and buffers as named numpy arrays, for the store."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from repsearch.errors import StoreError


def to_arrays(network: nn.Module) -> dict[str, np.ndarray]:
    """Return copies of every parameter and buffer by name, in the order of the state dictionary; scalars have shape ()."""
    return {name: value.detach().cpu().numpy().copy() for name, value in network.state_dict().items()}


def load_arrays(network: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Set every parameter and buffer of `network`; raises `StoreError` naming any that is missing, surplus or of another shape."""
    expected = network.state_dict()
    missing, surplus = expected.keys() - arrays.keys(), arrays.keys() - expected.keys()
    if missing or surplus:
        faults = f"missing {sorted(missing)[:3]}, surplus {sorted(surplus)[:3]}"
        raise StoreError(f"stored network does not fit: {faults}; it has another architecture")
    for name, value in expected.items():
        if tuple(arrays[name].shape) != tuple(value.shape):
            raise StoreError(f"stored network does not fit: {name} has shape {tuple(arrays[name].shape)}, expected {tuple(value.shape)}")
    network.load_state_dict({name: torch.from_numpy(np.array(arrays[name])) for name in expected})
