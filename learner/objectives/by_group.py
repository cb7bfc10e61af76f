"""Squared errors of a block's output in copies, one per group of its channels, each of which moves with that group alone.

A copy is the error of the block's whole output, the channels of other groups held where the undisturbed pass has them: a stop-gradient,
and for a disturbance what a stop-gradient is to a gradient. All copies have the same value without a disturbance, and their gradients, not
they, add up to that of the error, for any number of groups (Ren et al. 2022, arXiv 2210.03310, do this with the cross-entropy of a
classifier). What a group moves enters the error by sums over the group, so that all copies cost what one does.
Shapes: B examples; X the axes of an output, channels first; G groups; N components of a group; L any axes; K classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def raw_errors(output_BX: Tensor, undisturbed_BX: Tensor, target_BX: Tensor, groups: int) -> Tensor:
    """Return the mean squared error of each example in each copy (B, G)."""
    still_B1 = (undisturbed_BX - target_BX).flatten(1).square().mean(1, keepdim=True)
    moved_BGN = in_groups((output_BX - undisturbed_BX) * (output_BX + undisturbed_BX - 2 * target_BX), groups)
    return still_B1 + moved_BGN.sum(2) / math.prod(output_BX.shape[1:])


def normalised_errors(output_BX: Tensor, undisturbed_BX: Tensor, target_BX: Tensor, groups: int, eps: float) -> Tensor:
    """Return the same of outputs at zero mean and unit variance per example, as `layer_norm` with `eps` has them.

    Less the undisturbed output's mean, and over its deviation with `eps` in it, components are y + d, with mean(y) = 0 and a mean square
    of y of r. The copy's mean is m = mean(d), its variance v = r + mean(d (2 y + d)) - m^2, its deviation s = sqrt(v + 1 - r), all means
    over all components, of which only the group's d are not 0; its error is v / s^2 - 2 (mean((y + d) t) - m mean(t)) / s + mean(t^2).
    """
    size, axes = math.prod(output_BX.shape[1:]), tuple(range(1, output_BX.ndim))
    centred_BX = undisturbed_BX - undisturbed_BX.mean(axes, keepdim=True)
    variance_B1 = centred_BX.flatten(1).square().mean(1, keepdim=True)
    deviation_BX = (variance_B1 + eps).sqrt().reshape(-1, *[1] * len(axes))
    y_BX, d_BX = centred_BX / deviation_BX, (output_BX - undisturbed_BX) / deviation_BX
    r_B1 = variance_B1 / (variance_B1 + eps)
    m_BG = in_groups(d_BX, groups).sum(2) / size
    widened_BG = in_groups(d_BX * (2 * y_BX + d_BX), groups).sum(2) / size - m_BG.square()
    s_BG = (1 + widened_BG).sqrt()
    together_BG = (y_BX * target_BX).flatten(1).mean(1, keepdim=True) + in_groups(d_BX * target_BX, groups).sum(2) / size
    target_B1, target_square_B1 = (value.flatten(1).mean(1, keepdim=True) for value in (target_BX, target_BX.square()))
    return (r_B1 + widened_BG) / s_BG.square() - 2 * (together_BG - m_BG * target_B1) / s_BG + target_square_B1


def by_logit(logits_BK: Tensor, undisturbed_BK: Tensor) -> Tensor:
    """Return logits in as many copies as classes, each of which moves with one of them alone (B, K, K)."""
    return undisturbed_BK.unsqueeze(1) + torch.diag_embed(logits_BK - undisturbed_BK)


def cross_entropies(logits_BLK: Tensor, labels_B: Tensor) -> Tensor:
    """Return the cross-entropy of each example, over any axes L (B, L), by operations that are batched and carry tangents as they are."""
    labels_BL1 = labels_B.reshape(-1, *[1] * (logits_BLK.ndim - 1)).expand(*logits_BLK.shape[:-1], 1)
    return -F.log_softmax(logits_BLK, -1).gather(-1, labels_BL1).squeeze(-1)


def in_groups(values_BX: Tensor, groups: int) -> Tensor:
    """Return the components of each group of channels (B, G, N)."""
    return torch.unflatten(values_BX, 1, (groups, -1)).flatten(2)
