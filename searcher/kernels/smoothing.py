"""Smoothing as two small matrices.

A pass of 3x3 average pooling over the positions that exist is a mean over the row's neighbours, then over the column's: the number of
neighbours of a position is the product of the two. So p passes on a map X (H, W) are A X B^T, with A (H, H) and B (W, W) the p-th powers
of the one-dimensional means, whatever p is.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def smoothing_matrix(size: int, padded: int, passes: int, rescale: bool, device: torch.device) -> Tensor:
    """Return the transposed matrix of `passes` means over neighbours, float32 (padded, padded), zero beyond `size`.

    `rescale`: scaled so that standard normal input has unit variance on average over positions afterwards; the product of the factors
    of rows and columns is that of the map.
    """
    near = torch.eye(size, dtype=torch.float64)
    for shift in (-1, 1):
        near += torch.diag(torch.ones(size - 1, dtype=torch.float64), shift)
    matrix = torch.linalg.matrix_power(near / near.sum(dim=1, keepdim=True), passes)
    if rescale:
        matrix /= matrix.square().sum(dim=1).mean().sqrt()
    result = torch.zeros(padded, padded)
    result[:size, :size] = matrix.T
    return result.to(device)
