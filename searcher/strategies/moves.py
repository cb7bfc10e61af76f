"""What strategies other than evolution share: random directions, lengths, smoothing.

Shapes: see `searcher.strategies.base`. A candidate of a block has zero mean and unit variance over (G, M); logits have zero mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from repsearch.networks.base import Shape
from repsearch.seeding import draw
from searcher.noise import NOISE_STEP, noise_table, smooth
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
    coarse = _coarse(layer.shape)
    noise_BPGm = _take(layer, (G, *coarse), offsets_BP, passes=0, rows=rows)
    return noise_BPGm @ _interpolation(coarse, layer.shape[1:]).to(noise_BPGm)


@dataclass(frozen=True)
class DirectionRows:
    """Rows (R, M) of directions, in multiples of `step`: a direction is G rows that follow one another, from one of `draws` rows on."""

    values_RM: Tensor
    step: float
    draws: int


@lru_cache(maxsize=8)
def direction_rows(layer: SearchLayer, kind: NoiseKind, *, passes: int, rows: int) -> DirectionRows:
    """Return what `directions` are made of, interpolated and spread beforehand: `offsets` modulo `draws` give the same directions."""
    if not layer.is_map or kind == "pixel":
        shape = layer.shape if layer.is_map else layer.shape[:1]
        table = noise_table(shape, rows, passes if layer.is_map else 0, True, layer.seed, layer.device)
        return DirectionRows(table.steps, NOISE_STEP, table.draws)
    assert kind == "low_resolution", "values per channel would take rows of every position for each"
    coarse = _coarse(layer.shape)
    table = noise_table((layer.shape[0], *coarse), rows, 0, True, layer.seed, layer.device)
    values_RM = (table.steps * NOISE_STEP) @ _interpolation(coarse, layer.shape[1:])
    return DirectionRows(values_RM, 1.0, table.draws)


def _take(layer: SearchLayer, shape: tuple[int, ...], offsets_BP: Tensor, *, passes: int, rows: int) -> Tensor:
    table = noise_table(shape, rows, passes, True, layer.seed, layer.device)
    return table.take(offsets_BP % table.draws)


def _coarse(shape: Shape) -> tuple[int, int]:
    """Return height and width of the map that noise of low resolution is drawn on."""
    return math.ceil(shape[1] / _COARSE), math.ceil(shape[2] / _COARSE)


def _interpolation(coarse: tuple[int, int], size: tuple[int, ...]) -> Tensor:
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
