"""Normal numbers from counter-based integers."""

from __future__ import annotations

import torch
from torch import Tensor

from repsearch.seeding import draw

_NOISE_BITS = 24


def standard_normal(keys_B: Tensor, count: int, device: torch.device) -> Tensor:
    """Return (B, count) standard normal numbers, a function of each key alone (Box & Muller 1958)."""
    counter = torch.arange((count + 1) // 2, device=device) * 2
    first = (draw(keys_B[:, None], counter, 1 << _NOISE_BITS) + 1).to(torch.float32) / (1 << _NOISE_BITS)
    second = draw(keys_B[:, None], counter + 1, 1 << _NOISE_BITS).to(torch.float32) * (2 * torch.pi / (1 << _NOISE_BITS))
    radius = torch.sqrt(-2 * torch.log(first))
    return torch.stack([radius * torch.cos(second), radius * torch.sin(second)], dim=2).flatten(1)[:, :count]
