"""A copy of a network for search: the same function in evaluation mode, without the work that changes nothing.

Identity convolutions (Dirac filters, as in an untrained `convnet`) are left out: their output equals their input exactly. BatchNorm with
frozen statistics becomes one multiply-add. Gradients are off.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repsearch.errors import ConfigError
from repsearch.networks.base import SearchableNetwork


def evaluation_network(network: SearchableNetwork, *, skip_identities: bool = True) -> SearchableNetwork:
    """Return a copy of `network` in evaluation mode; `skip_identities = False` keeps identity convolutions, as the tests' reference."""
    result = copy.deepcopy(network).eval().requires_grad_(False)
    for parent in list(result.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and skip_identities and is_identity(child):
                setattr(parent, name, nn.Identity())
            elif isinstance(child, _BatchNorm):
                if child.running_mean is None:
                    raise ConfigError(
                        "network: a BatchNorm without running statistics makes an example's result depend on the others beside it, "
                        "so it cannot be searched; keep track_running_stats = True"
                    )
                setattr(parent, name, FrozenNorm(child))
    return result


def is_identity(conv: nn.Conv2d) -> bool:
    """Return whether `conv` maps every finite input to itself: Dirac filters, no bias, unit stride, size-preserving padding."""
    size = conv.kernel_size
    plain = conv.groups == 1 and conv.bias is None and all(step == 1 for step in (*conv.stride, *conv.dilation))
    if not plain or conv.in_channels != conv.out_channels or any(side % 2 == 0 for side in size):
        return False
    if conv.padding_mode != "zeros" or tuple(conv.padding) != tuple(side // 2 for side in size):
        return False
    dirac = torch.empty_like(conv.weight, requires_grad=False)
    return torch.equal(conv.weight.detach(), nn.init.dirac_(dirac))


class FrozenNorm(nn.Module):
    """BatchNorm with fixed statistics as scale and shift, of vectors as of maps."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        scale = torch.rsqrt(norm.running_var.double() + norm.eps)
        shift = -norm.running_mean.double() * scale
        if norm.affine:
            scale = scale * norm.weight.double()
            shift = norm.bias.double() - norm.running_mean.double() * scale
        self.register_buffer("scale", scale.float())
        self.register_buffer("shift", shift.float())
        self._spread_to: tuple[Tensor, Tensor] | None = None

    def forward(self, values_BCX: Tensor) -> Tensor:
        """Return values * scale + shift, per channel (axis 1)."""
        scale_CX, shift_CX = self._spread(values_BCX)
        return torch.addcmul(shift_CX, values_BCX, scale_CX)

    def _spread(self, values_BCX: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and shift at every position: on CPU the sum is then 6 times faster than with one number per channel."""
        if self._spread_to is None or self._spread_to[0].shape != values_BCX.shape[1:] or self._spread_to[0].device != values_BCX.device:
            per_channel = (-1, *(1 for _ in values_BCX.shape[2:]))
            scale, shift = (value.view(per_channel).expand(values_BCX.shape[1:]).contiguous() for value in (self.scale, self.shift))
            self._spread_to = scale, shift
        return self._spread_to
