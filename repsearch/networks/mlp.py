"""A network of fully connected blocks, whose representations are vectors.

The stem flattens the image; a block is one or more layers of Linear -> BatchNorm (optional) -> activation; the head is linear. As in
`convnet`, a block's representation is its output normalised to zero mean and unit variance over (D,), per example, and that is what the
next block reads: a searched representation and a computed one have the same form. Without normalisation it is the plain network of the
literature, to compare methods with; what search puts in its place is normalised all the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from repsearch.networks.base import BlockOutput, SearchableNetwork, Shape
from repsearch.networks.convnet import Head, normalised

Activation = Literal["gelu", "relu", "leaky_relu", "sign"]
SLOPE = 0.2


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """Hyperparameters of the fully connected network.

    widths: length of each block's output; as many blocks as widths.
    layers: linear layers per block, each as wide as the block's output; the searched copy of round 0 may have fewer.
    batchnorm: put BatchNorm before each activation.
    activation: `gelu`, `relu`, `leaky_relu` of slope 0.2, or `sign`: -1 or 1, which has no derivative; a pass backward takes that of the
        values cut at -1 and 1 for it (straight-through, Bengio et al. 2013, arXiv 1308.3432).
    normalise: normalise each block's output per example.
    batchnorm_momentum: weight of the newest batch in the running statistics.
    head_scale: factor on the logits.
    groups: of the units of a block, which its linear layers after the first keep apart: each connects a group's units with those of the
        same group alone. A divisor of every width.
    """

    outputs: ClassVar[tuple[BlockOutput, ...]] = ("representation", "raw", "before_activation")

    # At least 2: a single number normalised is always 0.
    widths: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)] = field(default_factory=lambda: [256, 256, 256])
    layers: Annotated[int, Field(ge=1)] = 1
    batchnorm: bool = True
    batchnorm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    activation: Activation = "gelu"
    normalise: bool = True
    head_scale: Annotated[float, Field(gt=0)] = 1.0
    groups: Annotated[int, Field(ge=1)] = 1

    def __post_init__(self) -> None:
        uneven = [width for width in self.widths if width % self.groups]
        if uneven:
            raise ValueError(f"groups is {self.groups}, which does not divide the width {uneven[0]}; set it to a divisor of every width")

    def check(self, input_shape: Shape) -> tuple[Shape, ...]:
        """Return the shapes of the block representations, each (width,); every image fits."""
        return tuple((width,) for width in self.widths)

    def build(
        self,
        *,
        input_shape: Shape,
        classes: int,
        mean: Tensor,
        std: Tensor,
        stem_images: Tensor,
        rng: torch.Generator,
    ) -> SearchableNetwork:
        """Return the network; see `NetworkSpec.build`."""
        return MlpModule(self, input_shape=input_shape, classes=classes, mean=mean, std=std, rng=rng)


class MlpModule(SearchableNetwork):
    """The network that an `Mlp` describes."""

    def __init__(self, spec: Mlp, *, input_shape: Shape, classes: int, mean: Tensor, std: Tensor, rng: torch.Generator) -> None:
        super().__init__(mean=mean, std=std)
        self.block_shapes = spec.check(input_shape)
        self.classes = classes
        self.normalises = spec.normalise
        self.stem = nn.Flatten()
        features = [math.prod(input_shape), *spec.widths]
        self.blocks = nn.ModuleList(MlpBlock(spec, below, width, rng) for below, width in zip(features, spec.widths, strict=False))
        self.head = Head(spec.widths[-1], classes, spec.head_scale, rng)

    def run_block(self, layer: int, below_BX: Tensor, output: BlockOutput) -> tuple[Tensor, Tensor]:
        """Return representation and `output` of a block; see `SearchableNetwork.run_block`."""
        if output == "representation":
            return super().run_block(layer, below_BX, output)
        block = self.blocks[layer]
        assert isinstance(block, MlpBlock)
        before_BX = block.before_activation(below_BX)
        raw_BX = block.activated(before_BX)
        return block.represented(raw_BX), raw_BX if output == "raw" else before_BX


class MlpBlock(nn.Module):
    """`layers` times Linear -> BatchNorm (optional) -> activation; the output, normalised if wanted, is the representation."""

    def __init__(self, spec: Mlp, features: int, width: int, rng: torch.Generator) -> None:
        super().__init__()
        self.activation, self.normalise = spec.activation, spec.normalise
        self.linears = nn.ModuleList(
            grouped_linear(width, spec.groups, rng) if layer and spec.groups > 1 else linear(features if layer == 0 else width, width, rng)
            for layer in range(spec.layers)
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(width, momentum=spec.batchnorm_momentum) if spec.batchnorm else nn.Identity() for _ in range(spec.layers)
        )

    def forward(self, vectors_BD: Tensor) -> Tensor:
        """Return the representation (B, width)."""
        return self.represented(self.activated(self.before_activation(vectors_BD)))

    def before_activation(self, vectors_BD: Tensor) -> Tensor:
        """Return what the block's last activation reads."""
        for position, (layer, norm) in enumerate(zip(self.linears, self.norms, strict=True)):
            vectors_BD = self.activated(vectors_BD) if position else vectors_BD
            in_groups = isinstance(layer, nn.Conv2d)
            vectors_BD = norm(layer(vectors_BD[..., None, None]).flatten(1) if in_groups else layer(vectors_BD))
        return vectors_BD

    def activated(self, vectors_BD: Tensor) -> Tensor:
        """Return what the activation makes of its input."""
        if self.activation == "leaky_relu":
            return F.leaky_relu(vectors_BD, SLOPE)
        if self.activation == "sign":
            cut_BD = vectors_BD.clamp(-1, 1)
            return vectors_BD.sign().detach() + (cut_BD - cut_BD.detach())
        return F.relu(vectors_BD) if self.activation == "relu" else F.gelu(vectors_BD)

    def represented(self, raw_BD: Tensor) -> Tensor:
        """Return the representation that the last activation's output is."""
        return normalised(raw_BD) if self.normalise else raw_BD


def grouped_linear(width: int, groups: int, rng: torch.Generator) -> nn.Conv2d:
    """Return a linear layer of units in groups, as a convolution of maps of one position, which torch has groups of."""
    layer = nn.Conv2d(width, width, 1, groups=groups)
    with torch.no_grad():
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=rng)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    return layer


def linear(features: int, width: int, rng: torch.Generator) -> nn.Linear:
    """Return a linear layer with Kaiming-uniform weights from `rng` and zero bias."""
    layer = nn.Linear(features, width)
    with torch.no_grad():
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=rng)
        nn.init.zeros_(layer.bias)
    return layer
