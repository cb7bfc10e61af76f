"""What the fit loop needs of an optimiser."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import nn


class OptimiserSpec(Protocol):
    """A member of the optimiser family: hyperparameters, `lr` among them, from which a `torch.optim` optimiser is built."""

    @property
    def lr(self) -> float:
        """Peak learning rate; the schedule scales it."""
        ...

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimiser of `parameters`. Its state must be tensors, so that checkpoints can hold it."""
        ...
