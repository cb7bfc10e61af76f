"""The layers that a rule has formulas for: linear maps and convolutions, whose pre-activations it reads and disturbs.

A rule sees a network as layers in the order in which they run. While it runs the network, it puts a function of its own in place of each
layer's forward pass. Shapes: B examples; X the axes of a pre-activation; Y those of a layer's input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Module = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Layer:
    """A layer by its name in the network. part: of the network that it learns with, see `parts`. position: within the part.

    groups: of its channels, each of which reaches the loss of that group of the part alone; 1: all reach the part's whole loss.
    """

    name: str
    module: Module
    part: int
    position: int
    groups: int = 1

    def run(self, input_BY: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the pre-activation (B, X), with `weight` in place of the layer's own."""
        return self.apply(input_BY, self.module.weight if weight is None else weight, self.module.bias)

    def apply(self, input_BY: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return what the layer makes of an input with other parameters (B, X)."""
        if isinstance(self.module, nn.Linear):
            return F.linear(input_BY, weight, bias)
        output_BX: Tensor = self.module._conv_forward(input_BY, weight, bias)
        return output_BX

    def in_groups(self, values_KBX: Tensor) -> Tensor:
        """Return values of pre-activations with each group of channels as an example of its own: (K, B * G, X of a group)."""
        if self.groups == 1:
            return values_KBX
        return torch.unflatten(values_KBX.movedim(self._channels(values_KBX), 2), 2, (self.groups, -1)).flatten(1, 2)

    def together(self, values_LX: Tensor, like_KBX: Tensor) -> Tensor:
        """Return what `in_groups` took apart as one again (B, X)."""
        if self.groups == 1:
            return values_LX
        return torch.unflatten(values_LX, 0, (-1, self.groups)).flatten(1, 2).movedim(1, self._channels(like_KBX) - 1)

    def _channels(self, values_KBX: Tensor) -> int:
        return values_KBX.ndim - 1 if isinstance(self.module, nn.Linear) else 2

    def gradient(self, input_BY: Tensor, error_BX: Tensor) -> Tensor:
        """Return the gradient of the weight, summed over examples, for `error_BX` as that of the pre-activation."""
        if isinstance(self.module, nn.Linear):
            return error_BX.flatten(0, -2).T @ input_BY.flatten(0, -2)
        return self._convolution_backward(input_BY, error_BX, self.module.weight, 1)

    def bias_gradient(self, error_BX: Tensor) -> Tensor:
        """Return the gradient of the bias, summed over examples."""
        return error_BX.flatten(0, -2).sum(0) if isinstance(self.module, nn.Linear) else error_BX.sum((0, 2, 3))

    def back(self, input_BY: Tensor, error_BX: Tensor, weight: Tensor) -> Tensor:
        """Return the error of the input that `error_BX` has through `weight`."""
        return error_BX @ weight if isinstance(self.module, nn.Linear) else self._convolution_backward(input_BY, error_BX, weight, 0)

    def write(self, input_BY: Tensor, error_BX: Tensor, *, through: Tensor | None = None) -> None:
        """Write the gradient into the parameters, for the error of a mean over examples; `through`: the layer's decorrelation matrix."""
        module = self.module
        if module.weight.requires_grad:
            gradient = self.gradient(input_BY, error_BX)
            module.weight.grad = gradient if through is None else (gradient.flatten(1) @ through.T).reshape(gradient.shape)
        if module.bias is not None and module.bias.requires_grad:
            module.bias.grad = self.bias_gradient(error_BX)

    def _convolution_backward(self, input_BY: Tensor, error_BX: Tensor, weight: Tensor, wanted: int) -> Tensor:
        """Return the error of the input (wanted = 0) or of the weight (1)."""
        module = self.module
        assert isinstance(module, nn.Conv2d)
        sizes = (module.stride, padding_of(module), module.dilation)
        mask = [wanted == 0, wanted == 1, False]
        found: Tensor = torch.ops.aten.convolution_backward(error_BX, input_BY, weight, None, *sizes, False, [0, 0], module.groups, mask)[
            wanted
        ]
        return found


def padding_of(module: nn.Conv2d) -> tuple[int, ...]:
    """Return the padding at each side of a map as numbers; "same" of an even kernel has none."""
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    if module.padding == "same":
        return tuple(step * (size - 1) // 2 for size, step in zip(module.kernel_size, module.dilation, strict=True))
    assert not isinstance(module.padding, str)
    return module.padding


@contextmanager
def running(layers: Sequence[Layer], forward: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """In this context, layer number i of `layers` returns `forward(i, input)`."""
    for number, layer in enumerate(layers):
        layer.module.__dict__["forward"] = partial(forward, number)
    try:
        yield
    finally:
        for layer in layers:
            del layer.module.__dict__["forward"]
