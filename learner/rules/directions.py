"""Random directions and noise: independent components of mean 0 and variance 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

NoiseLaw = Literal["gaussian", "rademacher"]
DirectionLaw = Literal["gaussian", "rademacher", "sphere"]


def noise(shape: Sequence[int], law: DirectionLaw, like: Tensor, rng: torch.Generator) -> Tensor:
    """Return noise of `shape` on the device and in the precision of `like`; drawn in float32, so that precision does not change it.

    `sphere` gives what `gaussian` does: who draws it brings the whole direction to its length.
    """
    if law == "rademacher":
        return _signs(math.prod(shape), like, rng).reshape(tuple(shape))
    return torch.randn(tuple(shape), generator=rng, device=like.device).to(like.dtype)


def _signs(count: int, like: Tensor, rng: torch.Generator) -> Tensor:
    # One random byte gives eight signs, at a third of the time of drawing each.
    words = torch.randint(-(2**63), 2**63 - 1, (count // 64 + 1,), generator=rng, device=like.device)
    bits = (torch.arange(256, device=like.device)[:, None] >> torch.arange(8, device=like.device)) & 1
    signs = (bits * 2 - 1).to(like.dtype)
    return signs[words.view(torch.uint8).int()].flatten()[:count]
