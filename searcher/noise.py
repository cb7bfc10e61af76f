"""Smoothed Gaussian noise from a table, addressed by integers.

Fresh normal noise plus repeated average pooling takes most of a generation's time. Here a table of R standard normal maps is drawn and
smoothed once; a draw is G consecutive rows, copied. Draws are exactly reproducible from their offsets, on any device.

With `rescale`, smoothed maps are scaled back to unit variance, so that a mutation of strength alpha has the standard deviation
alpha * sigma_c that the method asks for, whatever the number of passes (docs/design/0005-method.md has the measured difference).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from repsearch.networks.base import Shape


class NoiseTable:
    """R maps of standard normal noise, each smoothed by `passes` of 3x3 average pooling (positions beyond the border left out)."""

    def __init__(self, shape: Shape, *, rows: int, passes: int, rescale: bool, seed: int, device: torch.device) -> None:
        """`shape`: of one representation, (C, H, W) or (D,); maps are H x W, or D values. `rescale`: unit variance after smoothing."""
        self.groups, map_shape = (shape[0], shape[1:]) if len(shape) == 3 else (1, shape)
        self.size = math.prod(map_shape)
        rows = max(rows, 2 * self.groups)
        table = torch.randn(rows, *map_shape, generator=torch.Generator().manual_seed(seed))
        if passes:
            table = smooth(table, passes)
        if rescale:
            table /= table.std()
        self._table = table.reshape(rows, self.size).to(device)
        self.draws = rows - self.groups + 1
        # Overlapping rows: draw o is rows o .. o + G - 1 of the table, without a copy of it.
        self._view = self._table.as_strided((self.draws, self.groups * self.size), (self.size, 1))

    def take(self, offsets_BP: Tensor) -> Tensor:
        """Return noise (B, P, G, M) for offsets in 0..draws-1."""
        noise = self._view.index_select(0, offsets_BP.reshape(-1))
        return noise.reshape(*offsets_BP.shape, self.groups, self.size)


def smooth(maps_NHW: Tensor, passes: int) -> Tensor:
    """Return maps after `passes` of 3x3 average pooling with stride 1; a border position averages the positions that exist."""
    for _ in range(passes):
        maps_NHW = F.avg_pool2d(maps_NHW.unsqueeze(1), 3, stride=1, padding=1, count_include_pad=False).squeeze(1)
    return maps_NHW


@lru_cache(maxsize=8)
def noise_table(shape: Shape, rows: int, passes: int, rescale: bool, seed: int, device: torch.device) -> NoiseTable:
    """Return the table of these arguments, kept for the next tile."""
    return NoiseTable(shape, rows=rows, passes=passes, rescale=rescale, seed=seed, device=device)
