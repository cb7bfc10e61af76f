"""Smoothed Gaussian noise from a table, addressed by integers.

Fresh normal noise plus repeated average pooling takes most of a generation's time. Here a table of R standard normal maps is drawn and
smoothed once; a draw is G consecutive rows, copied, or summed with others on the way. Draws are exactly reproducible from their offsets,
on any device.

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

NOISE_STEP = 2.0**-12
_MOST_STEPS = 2**15 - 1


class NoiseTable:
    """R maps of standard normal noise, each smoothed by `passes` of 3x3 average pooling (positions beyond the border left out)."""

    def __init__(self, shape: Shape, *, rows: int, passes: int, rescale: bool, seed: int, device: torch.device) -> None:
        """`shape`: of one representation, (C, H, W) or (D,); maps are H x W, or D values. `rescale`: unit variance after smoothing.

        `steps`: the smoothed maps (R, M) in multiples of `NOISE_STEP`, int16; draw o is rows o .. o + G - 1.
        """
        self.groups, map_shape = (shape[0], shape[1:]) if len(shape) == 3 else (1, shape)
        self.size = math.prod(map_shape)
        rows = max(rows, 2 * self.groups)
        table = torch.randn(rows, *map_shape, generator=torch.Generator().manual_seed(seed))
        if passes:
            table = smooth(table, passes)
        if rescale:
            table /= table.std()
        # Multiples of 2^-12, so that a copy in 16 bits, for loops that wait for memory, holds the same noise.
        self.steps = (table / NOISE_STEP).round().clamp(-_MOST_STEPS, _MOST_STEPS).to(torch.int16).reshape(rows, self.size)
        table = self.steps * NOISE_STEP
        self.draws = rows - self.groups + 1
        self._rows = rows
        # Behind the noise a row of ones, and behind that the room for a pool: what one sum may read lies in one tensor.
        self._values = torch.cat([table, torch.ones(1, self.size)]).to(device)
        # Where group g of a summand lies behind its group 0; the row of ones serves all groups.
        self._steps = (torch.arange(self.groups)[:, None] * torch.tensor([1, 1, 1, 0])).to(device)
        self._means = self._values[:rows].mean(dim=1)
        # Overlapping rows: draw o is rows o .. o + G - 1 of the table, without a copy of it.
        self._draw_means = self._means.as_strided((self.draws, self.groups), (1, 1))

    def take(self, offsets_BP: Tensor) -> Tensor:
        """Return noise (B, P, G, M) for offsets in 0..draws-1."""
        view = self._values.as_strided((self.draws, self.groups * self.size), (self.size, 1))
        noise = view.index_select(0, offsets_BP.reshape(-1))
        return noise.reshape(*offsets_BP.shape, self.groups, self.size)

    def means(self, offsets_BP: Tensor) -> Tensor:
        """Return the mean over positions (B, P, G) of what `take` returns."""
        return self._draw_means.index_select(0, offsets_BP.reshape(-1)).view(*offsets_BP.shape, self.groups)

    def room(self, examples: int, members: int) -> Tensor:
        """Return room (examples, members, G, M) for a pool that `sum_rows` is to read; the next call takes it back.

        One search at a time uses a table: it is scratch memory, not state.
        """
        first, count = self._rows + 1, examples * members * self.groups
        if len(self._values) < first + count:
            self._values = torch.cat([self._values[:first], self._values.new_zeros(count, self.size)])
        return self._values[first : first + count].view(examples, members, self.groups, self.size)

    def sum_rows(self, pool_BQGM: Tensor, pairs_B2P: Tensor, draws_BP: Tensor, scale_BPG: Tensor, shift_BP1: Tensor) -> Tensor:
        """Return half of two members + scale * noise + shift, (B, P, G, M); `pool_BQGM` is the room, or its first members.

        pairs_B2P: numbers of members, below Q. draws_BP: offsets in 0..draws-1. The order of the sum is fixed, so its bits depend on
        nothing but the rows.
        """
        B, P, G = scale_BPG.shape
        rows_BP4 = self._places(pool_BQGM.stride(0) // self.size, pairs_B2P, draws_BP)
        weights_BPG4 = scale_BPG.new_full((B, P, G, 4), 0.5)
        weights_BPG4[..., 0] = scale_BPG
        weights_BPG4[..., 3] = shift_BP1
        rows_N4 = (rows_BP4[:, :, None] + self._steps).view(-1, 4)
        summed = F.embedding_bag(rows_N4, self._values, mode="sum", per_sample_weights=weights_BPG4.view(-1, 4))
        return summed.view(B, P, G, self.size)

    def _places(self, members_rows: int, pairs_B2P: Tensor, draws_BP: Tensor) -> Tensor:
        """Return the first row of each of the four summands (B, P, 4): noise, two members, the row of ones."""
        image_B11 = torch.arange(len(draws_BP), device=draws_BP.device)[:, None, None] * members_rows + (self._rows + 1)
        rows_BP4 = draws_BP.new_full((*draws_BP.shape, 4), self._rows)
        rows_BP4[..., 0] = draws_BP
        rows_BP4[..., 1:3] = torch.add(image_B11, pairs_B2P, alpha=self.groups).transpose(1, 2)
        return rows_BP4


def smooth(maps_NHW: Tensor, passes: int) -> Tensor:
    """Return maps after `passes` of 3x3 average pooling with stride 1; a border position averages the positions that exist."""
    for _ in range(passes):
        maps_NHW = F.avg_pool2d(maps_NHW.unsqueeze(1), 3, stride=1, padding=1, count_include_pad=False).squeeze(1)
    return maps_NHW


@lru_cache(maxsize=8)
def noise_table(shape: Shape, rows: int, passes: int, rescale: bool, seed: int, device: torch.device) -> NoiseTable:
    """Return the table of these arguments, kept for the next tile."""
    return NoiseTable(shape, rows=rows, passes=passes, rescale=rescale, seed=seed, device=device)
