"""Targets between the network's own representation and what was found.

Where rounds are short, a target is to lead the network a certain way from where it is, not to be reached. `step` goes a share of the way
to what was found; `nudge` goes the same length for every example, whatever the search has found.

Shapes: T examples of a tile; R results; S starting candidates; X a representation's own shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_TINY = 1e-12


@dataclass(frozen=True)
class Mix:
    """kind: `step`: a share `size` of the way; `nudge`: a length of `size` times the own representation's root mean square.

    relative: the result of a block is the way from the own representation to the target.
    """

    kind: Literal["step", "nudge"]
    size: float
    relative: bool = False

    def target(self, own_TX: Tensor, found_TRX: Tensor) -> Tensor:
        """Return own + size * direction (T, R, ...), not yet in the form of a layer; where nothing was found, the own representation."""
        way_TRX = found_TRX - own_TX[:, None]
        if self.kind == "nudge":
            way_TRX = way_TRX / _rms(way_TRX).clamp_min(_TINY) * _rms(own_TX[:, None])
        return torch.add(own_TX[:, None], way_TRX, alpha=self.size)


def _rms(values_TRX: Tensor) -> Tensor:
    """Return the root mean square over a representation, shaped to divide by."""
    flat_TRN = values_TRX.flatten(2)
    rms_TR: Tensor = torch.linalg.vector_norm(flat_TRN, dim=-1) / flat_TRN.shape[-1] ** 0.5
    return rms_TR.view(*rms_TR.shape, *(1 for _ in values_TRX.shape[2:]))
