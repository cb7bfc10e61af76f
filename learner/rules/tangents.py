"""Estimates from directional derivatives: which combination of K directions is closest to the gradient.

With directions v_k as columns of V and derivatives d = V^T g, the mean takes V d / K, which is unbiased for uncorrelated components of
variance 1; the projection takes V (V^T V)^-1 d, the gradient's projection on what the directions span (Fluegel et al., arXiv 2410.17764).
Shapes: K directions; N components; L any axes before them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Combination = Literal["mean", "projection"]


def coefficients(derivatives_LK: Tensor, gram_LKK: Tensor | None, combine: Combination) -> Tensor:
    """Return the factor of each direction in the estimate; gram: V^T V, needed for `projection`."""
    if combine == "mean":
        return derivatives_LK / derivatives_LK.shape[-1]
    assert gram_LKK is not None
    solved: Tensor = torch.linalg.solve(gram_LKK.double(), derivatives_LK.double().unsqueeze(-1)).squeeze(-1)
    return solved.to(derivatives_LK.dtype)


def combined(factors_KL: Tensor, drawn_KLN: Tensor) -> Tensor:
    """Return the sum over K of each factor times its direction, of the directions' shape; of one, it takes their place in memory."""
    if len(factors_KL) == 1:
        factors_L = factors_KL[0]
        return drawn_KLN[0].mul_(factors_L.reshape(*factors_L.shape, *[1] * (drawn_KLN.ndim - factors_KL.ndim)))
    if factors_KL.ndim == 1:
        summed: Tensor = torch.tensordot(factors_KL, drawn_KLN, 1)
        return summed
    return torch.einsum("kb,kbn->bn", factors_KL, drawn_KLN.flatten(2)).reshape(drawn_KLN.shape[1:])
