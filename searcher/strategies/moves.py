"""What strategies other than evolution share: random directions, lengths, smoothing.

Shapes: see `searcher.strategies.base`. A candidate of a block has zero mean and unit variance over (G, M); logits have zero mean.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from repsearch.seeding import draw
from searcher.noise import noise_table, smooth
from searcher.strategies.base import SearchLayer

NoiseKind = Literal["pixel", "low_resolution", "channel"]
_COARSE = 3
_TINY = 1e-12


def directions(layer: SearchLayer, kind: NoiseKind, offsets_BP: Tensor, *, passes: int, rows: int) -> Tensor:
    """Return random directions (B, P, G, M) of unit variance, a function of the layer's seed and 63-bit `offsets_BP` alone.

    pixel: a value per position, blurred by `passes`. low_resolution: a value per 3x3 positions, interpolated linearly. channel: one
    value per channel. Vectors and logits have one value per element in every kind.
    """
    if not layer.is_map:
        return _take(layer, layer.shape[:1], offsets_BP, passes=0, rows=rows)
    if kind == "pixel":
        return _take(layer, layer.shape, offsets_BP, passes=passes, rows=rows)
    G, M = layer.groups
    if kind == "channel":
        return _take(layer, (G,), offsets_BP, passes=0, rows=rows).transpose(2, 3).expand(-1, -1, G, M)
    height, width = layer.shape[1:]
    coarse = (math.ceil(height / _COARSE), math.ceil(width / _COARSE))
    noise_BPGm = _take(layer, (G, *coarse), offsets_BP, passes=0, rows=rows)
    return noise_BPGm @ _interpolation(coarse, (height, width)).to(noise_BPGm)


def _take(layer: SearchLayer, shape: tuple[int, ...], offsets_BP: Tensor, *, passes: int, rows: int) -> Tensor:
    table = noise_table(shape, rows, passes, True, layer.seed, layer.device)
    return table.take(offsets_BP % table.draws)


def _interpolation(coarse: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return the matrix (coarse positions, positions) of bilinear interpolation, scaled to keep unit variance on average."""
    cells = coarse[0] * coarse[1]
    weights = F.interpolate(torch.eye(cells).view(cells, 1, *coarse), size, mode="bilinear").view(cells, -1)
    return weights / weights.square().sum(dim=0).mean().sqrt()


def offsets(keys_B: Tensor, generation: int, count: int) -> Tensor:
    """Return `count` random integers (B, count) per example and generation."""
    counter_P = torch.arange(count, device=keys_B.device) + generation * count
    return draw(keys_B[:, None], counter_P, 1 << 31)


def rms(values_BPGM: Tensor) -> Tensor:
    """Return the root mean square over (G, M), shape (B, P, 1, 1)."""
    flat_BPX = values_BPGM.flatten(2)
    norm_BP: Tensor = torch.linalg.vector_norm(flat_BPX, dim=-1)
    return (norm_BP / math.sqrt(flat_BPX.shape[-1]))[..., None, None]


def unit(values_BPGM: Tensor) -> Tensor:
    """Return values over their root mean square; zeros stay zeros."""
    return values_BPGM / rms(values_BPGM).clamp_min(_TINY)


def blurred(values_BPGM: Tensor, layer: SearchLayer, passes: int) -> Tensor:
    """Return feature maps smoothed by `passes` of 3x3 average pooling; vectors and logits as they are."""
    if not (passes and layer.is_map):
        return values_BPGM
    return smooth(values_BPGM.reshape(-1, *layer.shape[1:]), passes).reshape(values_BPGM.shape)
