"""Children of a pool of candidates: crossover, mutation and normalisation in as few passes over memory as they take.

A child is half of one pool member, half of another, plus noise times a deviation per group, less its mean, over its deviation. The mean
follows from the members' and the noise rows' means without reading the child, so that crossover, mutation and centring are one pass: a
sum of four weighted rows per group, of which the noise table holds all (`NoiseTable.sum_rows`). A second pass reads the child's size, a
third scales it. `tests/test_search_speed.py` has the operators one after another, as the method states them.

Shapes: see `searcher.strategies.base`; Q members of a pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from searcher.noise import NoiseTable

NORMALISE_EPS = 1e-5


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation over positions, per candidate and group (B, P, G)."""

    mean_BPG: Tensor
    deviation_BPG: Tensor

    @classmethod
    def of(cls, maps_BPGM: Tensor) -> Moments:
        """Measure; the deviation is sqrt(E[x^2] - m^2), because `torch.std` is 70 times slower on CPU."""
        M = maps_BPGM.shape[-1]
        mean_BPG = maps_BPGM.sum(dim=-1) / M
        square_BPG: Tensor = torch.linalg.vector_norm(maps_BPGM, dim=-1).square() / M
        return cls(mean_BPG, (square_BPG - mean_BPG.square()).clamp_min(0).sqrt())

    def and_then(self, other: Moments) -> Moments:
        """Return the moments of these candidates and, after them, of others."""
        return Moments(torch.cat([self.mean_BPG, other.mean_BPG], 1), torch.cat([self.deviation_BPG, other.deviation_BPG], 1))

    def of_pairs(self, rows_B2P: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means over two members of mean and deviation (B, P, G); `rows_B2P` numbers candidates through the whole tile."""
        B, two, P = rows_B2P.shape
        pair = (
            value.flatten(0, 1).index_select(0, rows_B2P.flatten()).view(B, two, P, -1) for value in (self.mean_BPG, self.deviation_BPG)
        )
        mean_BPG, deviation_BPG = ((value[:, 0] + value[:, 1]) / 2 for value in pair)
        return mean_BPG, deviation_BPG


def breed(
    table: NoiseTable,
    pool_BQGM: Tensor,
    moments: Moments,
    drawn_B3P: Tensor,
    strength: float | Tensor,
    *,
    unit: bool,
    absolute: bool = False,
    out_BPGM: Tensor,
) -> Moments:
    """Write children into `out_BPGM` and return their moments.

    pool_BQGM: members that lie in the table's room (`NoiseTable.room`), with their moments. drawn_B3P: numbers of two members, below Q,
    and of a draw of noise. strength: of all, or per example (B, 1, 1); in deviations of the members, or `absolute`. unit: divide by the
    deviation (blocks), or centre only (logits).
    """
    B, Q, _, M = pool_BQGM.shape
    image_B11 = torch.arange(B, device=drawn_B3P.device)[:, None, None]
    pairs_B2P, draws_BP = drawn_B3P[:, :2], drawn_B3P[:, 2]
    mean_BPG, deviation_BPG = moments.of_pairs(pairs_B2P + image_B11 * Q)
    scale_BPG = (torch.ones_like(deviation_BPG) if absolute else deviation_BPG) * strength
    mean_BPG = torch.addcmul(mean_BPG, scale_BPG, table.means(draws_BP))
    centre_BP1 = mean_BPG.mean(dim=-1, keepdim=True)
    raw_BPGM = table.sum_rows(pool_BQGM, pairs_B2P, draws_BP, scale_BPG, -centre_BP1)
    mean_BPG = mean_BPG - centre_BP1
    square_BPG: Tensor = torch.linalg.vector_norm(raw_BPGM, dim=-1).square() / M
    deviation_BPG = (square_BPG - mean_BPG.square()).clamp_min(0).sqrt()
    if not unit:
        out_BPGM.copy_(raw_BPGM)
        return Moments(mean_BPG, deviation_BPG)
    factor_BP1 = torch.rsqrt(square_BPG.mean(dim=-1, keepdim=True) + NORMALISE_EPS)
    torch.mul(raw_BPGM, factor_BP1[..., None], out=out_BPGM)
    return Moments(mean_BPG * factor_BP1, deviation_BPG * factor_BP1)
