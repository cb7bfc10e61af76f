"""Representations of unit scale for a network whose own block outputs have any scale.

Search proposes candidates of zero mean and unit variance. A block whose output has mean 1 and deviation 3 cannot read those, and
normalising what passes between the blocks would make another function of the network. So the representation is the output less a fixed
mean, over a fixed deviation, both one number per block; the next part undoes it first. The network's function stays what it was, a
computed representation has about the form of a candidate, and a candidate reaches the next part at the scale that part expects. What a
candidate lacks is the difference of an example's own mean and deviation from the typical ones.

Rejected: keeping each example's own mean and deviation beside its candidates. No target carries them, so the learner could not be held
to what search found.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

VARIANCE_EPS = 1e-5


class Standardise(nn.Module):
    """(output - mean) / deviation, with running statistics of the outputs that pass in training mode.

    mean, deviation: scalars; averages over examples of the mean, and root mean square of the deviation, over the axes of an output.
    momentum: weight of the newest batch in them; `calibrate` sets it to 1 for its own pass.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    def forward(self, output_BX: Tensor) -> Tensor:
        """Return the representation of `output_BX`, a new tensor."""
        if self.training:
            self._update(output_BX.detach().flatten(1))
        return (output_BX - self.mean) / self.deviation

    def undo(self, representation_BX: Tensor) -> Tensor:
        """Return the output that has this representation, a new tensor: what reads it may work in place."""
        return torch.addcmul(self.mean, representation_BX, self.deviation)

    def _update(self, output_BD: Tensor) -> None:
        mean_B = output_BD.mean(dim=1)
        variance = (output_BD.square().mean(dim=1) - mean_B.square()).mean().clamp_min(0)
        # New tensors: a gradient that is still to come may need the old ones.
        self.mean = self.mean.lerp(mean_B.mean().to(self.mean.dtype), self.momentum)
        self.deviation = self.deviation.lerp((variance + VARIANCE_EPS).sqrt().to(self.mean.dtype), self.momentum)
