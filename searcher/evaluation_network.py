"""A copy of a network for search: the same function in evaluation mode, without the work that changes nothing.

Identity convolutions (Dirac filters, as in an untrained `convnet`) are left out: their output equals their input exactly. BatchNorm with
frozen statistics becomes one multiply-add. In a learned `convnet` it becomes part of the convolution before it, and maps lie in memory as
convolutions on a CPU are fastest. Gradients are off.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repsearch.errors import ConfigError
from repsearch.networks.base import SearchableNetwork, Shape
from repsearch.networks.convnet import ConvBlock, ConvGroup

LAST_FROM = 25
"""Positions of a map from which on its channels come last."""


def evaluation_network(network: SearchableNetwork, *, skip_identities: bool = True) -> SearchableNetwork:
    """Return a copy of `network` in evaluation mode; `skip_identities = False` keeps identity convolutions, as the tests' reference."""
    result = copy.deepcopy(network).eval().requires_grad_(False)
    if _learned(result):
        for block in result.blocks:
            block.groups = nn.ModuleList([FoldedGroup(group) for group in block.groups])  # type: ignore[union-attr]
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


def _learned(network: SearchableNetwork) -> bool:
    """Return whether `network` is a `convnet` of real convolutions, each followed by BatchNorm with statistics."""
    if not all(isinstance(block, ConvBlock) for block in network.blocks):
        return False
    groups = [group for block in network.blocks for group in block.groups]  # type: ignore[union-attr]
    if not all(isinstance(group, ConvGroup) for group in groups):
        return False
    convs = [conv for group in groups for conv in (group.conv1, group.conv2)]
    norms = [norm for group in groups for norm in (group.norm1, group.norm2)]
    real = all(isinstance(conv, nn.Conv2d) and not is_identity(conv) for conv in convs)
    return real and all(isinstance(norm, _BatchNorm) and norm.running_mean is not None for norm in norms)


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


class FoldedGroup(nn.Module):
    """A `ConvGroup` with frozen BatchNorm in its convolutions; the one before the pooling stays apart where it turns a channel's sign,
    because the maximum then is another."""

    def __init__(self, group: ConvGroup) -> None:
        super().__init__()
        assert isinstance(group.norm1, _BatchNorm) and isinstance(group.norm2, _BatchNorm)
        first, second = FrozenNorm(group.norm1), FrozenNorm(group.norm2)
        apart = group.pool and bool((first.scale < 0).any())
        self.pool = group.pool
        self.conv1 = group.conv1 if apart else folded(group.conv1, first)
        self.norm1 = first if apart else nn.Identity()
        self.conv2 = folded(group.conv2, second)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """See `ConvGroup.forward`."""
        return F.gelu(self.before_activation(maps_BCHW))

    def before_activation(self, maps_BCHW: Tensor) -> Tensor:
        """See `ConvGroup.before_activation`."""
        maps_BCHW = self.conv1(arranged(maps_BCHW))
        if self.pool:
            maps_BCHW = arranged(F.max_pool2d(maps_BCHW, 2))
        return self.conv2(F.gelu(self.norm1(maps_BCHW)))  # type: ignore[no-any-return]


def folded(conv: nn.Conv2d, norm: FrozenNorm) -> nn.Conv2d:
    """Return a convolution without bias, followed by scale and shift, as one with bias."""
    result = copy.deepcopy(conv)
    result.weight.copy_((conv.weight.double() * norm.scale.double()[:, None, None, None]).float())
    result.bias = nn.Parameter(norm.shift.clone(), requires_grad=False)
    return result


def channels_last(shape: Shape) -> bool:
    """Return whether convolutions on maps of `shape` are fastest with the channels last: on a CPU those of small maps are not."""
    return shape[-2] * shape[-1] >= LAST_FROM


def arranged(maps_BCHW: Tensor) -> Tensor:
    """Return maps as `channels_last` says."""
    last = channels_last(maps_BCHW.shape)
    return maps_BCHW.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


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
