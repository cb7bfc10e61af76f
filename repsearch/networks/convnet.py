"""The convolutional network of the source paper (after KellerJordan's cifar10-airbench).

A whitening stem (2x2 convolution whose filters are the eigenvectors of training patches, and their negatives; then GELU); blocks of
convolution groups; a linear head. The first group of a block is Conv3x3 -> MaxPool2 -> BN -> GELU -> Conv3x3 -> BN -> GELU, further
groups leave the pooling out. A block's representation is its output normalised to zero mean and unit variance over (C, H, W), per
example, and that is what the next block reads: searched targets have this form, so a found representation and a computed one are
interchangeable, and BatchNorm calibrated on one serves the other. Convolutions start as Dirac filters: the first `in_channels` filters
are identities, the rest Kaiming-uniform. Vegesna & Dahal 2025, section 3; reference sizes: CIFAR-10 at width 256 gives 256x15x15,
256x7x7, 256x3x3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from repsearch.errors import ConfigError
from repsearch.networks.base import BlockOutput, SearchableNetwork, Shape

STEM_KERNEL = 2
NORMALISE_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class ConvNet:
    """Hyperparameters of the convolutional network.

    width: channels of every block output.
    blocks: number of blocks, each halving the map.
    convolutions: convolutions per block, two per group; the searched copy of round 0 usually has 2, the learned network 4 or 6.
    batchnorm: statistics that BatchNorm normalises by: `running`, a running average in evaluation; `batch`, those of the batch at hand in
        training and in evaluation, as in the paper; `none`: no BatchNorm, for learning rules that need examples apart from one another.
        With `batch` an image's logits depend on the images beside it, so the network cannot be searched: only rounds that search the
        untrained network can use it, with `search.network.batchnorm = "running"`.
    batchnorm_momentum: weight of the newest batch in the running statistics.
    head_scale: factor on the logits.
    """

    outputs: ClassVar[tuple[BlockOutput, ...]] = ("representation", "raw", "before_activation")

    width: Annotated[int, Field(ge=1)] = 16
    blocks: Annotated[int, Field(ge=1)] = 3
    convolutions: Annotated[int, Field(ge=2, multiple_of=2)] = 4
    batchnorm: Literal["running", "batch", "none"] = "running"
    batchnorm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    head_scale: Annotated[float, Field(gt=0)] = 1.0

    @property
    def depends_on_batch(self) -> bool:
        """Whether BatchNorm takes its statistics from the batch at hand."""
        return self.batchnorm == "batch"

    def check(self, input_shape: Shape) -> tuple[Shape, ...]:
        """Return the shapes of the block representations, each (width, H, W); raises `ConfigError` if a map shrinks to nothing."""
        _, height, width = input_shape
        height, width = height - STEM_KERNEL + 1, width - STEM_KERNEL + 1
        stem_channels = 2 * input_shape[0] * STEM_KERNEL**2
        if self.width < stem_channels:
            raise ConfigError(
                f"network.width: {self.width} is below the stem's {stem_channels} channels; set it to {stem_channels} or more"
            )
        shapes = []
        for block in range(self.blocks):
            height, width = height // 2, width // 2
            if min(height, width) < 1:
                size = f"{input_shape[1]}x{input_shape[2]}"
                raise ConfigError(f"network.blocks: {self.blocks} blocks do not fit {size} images; set it to {block} or fewer")
            shapes.append((self.width, height, width))
        return tuple(shapes)

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
        return ConvNetModule(self, input_shape=input_shape, classes=classes, mean=mean, std=std, stem_images=stem_images, rng=rng)


class ConvNetModule(SearchableNetwork):
    """The network that a `ConvNet` describes."""

    def __init__(
        self,
        spec: ConvNet,
        *,
        input_shape: Shape,
        classes: int,
        mean: Tensor,
        std: Tensor,
        stem_images: Tensor,
        rng: torch.Generator,
    ) -> None:
        super().__init__(mean=mean, std=std)
        self.block_shapes = spec.check(input_shape)
        self.classes = classes
        self.normalises = True
        self.stem = WhiteningStem(self.prepare(stem_images))
        channels = self.stem.channels
        self.blocks = nn.ModuleList()
        for _ in self.block_shapes:
            self.blocks.append(ConvBlock(spec, channels, rng))
            channels = spec.width
        self.head = Head(math.prod(self.block_shapes[-1]), classes, spec.head_scale, rng)

    def run_block(self, layer: int, below_BX: Tensor, output: BlockOutput) -> tuple[Tensor, Tensor]:
        """Return representation and `output` of a block; see `SearchableNetwork.run_block`."""
        if output == "representation":
            return super().run_block(layer, below_BX, output)
        block = self.blocks[layer]
        assert isinstance(block, ConvBlock)
        before_BX = block.before_activation(below_BX)
        raw_BX = F.gelu(before_BX)
        return normalised(raw_BX), raw_BX if output == "raw" else before_BX


class WhiteningStem(nn.Module):
    """2x2 convolution that whitens patches of `inputs_NCHW`, with each filter's negative, then GELU; never trained."""

    weight: Tensor

    def __init__(self, inputs_NCHW: Tensor, eps: float = 5e-4) -> None:
        super().__init__()
        channels = inputs_NCHW.shape[1]
        patches = F.unfold(inputs_NCHW, STEM_KERNEL).transpose(1, 2).reshape(-1, channels * STEM_KERNEL**2).double()
        covariance = patches.T @ patches / len(patches)
        values, vectors = torch.linalg.eigh(covariance)
        # An eigenvector's sign is arbitrary; fix it, so that libraries and devices agree.
        signs = torch.sign(vectors.gather(0, vectors.abs().argmax(0, keepdim=True)))
        filters = (vectors * signs / torch.sqrt(values + eps)).T.flip(0).reshape(-1, channels, STEM_KERNEL, STEM_KERNEL)
        self.register_buffer("weight", torch.cat([filters, -filters]).float())
        self.channels = len(self.weight)

    def forward(self, inputs_BCHW: Tensor) -> Tensor:
        """Return (B, 2 * 4 C, H - 1, W - 1)."""
        return F.gelu(F.conv2d(inputs_BCHW, self.weight))


class ConvGroup(nn.Module):
    """Conv3x3 (-> MaxPool2) -> BN -> GELU -> Conv3x3 -> BN -> GELU."""

    def __init__(self, spec: ConvNet, channels_in: int, *, pool: bool, rng: torch.Generator) -> None:
        super().__init__()
        self.pool = pool
        self.conv1 = dirac_conv(channels_in, spec.width, rng)
        self.norm1 = _norm(spec)
        self.conv2 = dirac_conv(spec.width, spec.width, rng)
        self.norm2 = _norm(spec)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """Return maps of `width` channels, of half the size with pooling."""
        return F.gelu(self.before_activation(maps_BCHW))

    def before_activation(self, maps_BCHW: Tensor) -> Tensor:
        """Return what the last GELU reads."""
        maps_BCHW = self.conv1(maps_BCHW)
        if self.pool:
            maps_BCHW = halve(maps_BCHW)
        maps_BCHW = F.gelu(self.norm1(maps_BCHW))
        return self.norm2(self.conv2(maps_BCHW))  # type: ignore[no-any-return]


def _norm(spec: ConvNet) -> nn.Module:
    if spec.batchnorm == "none":
        return nn.Identity()
    return nn.BatchNorm2d(spec.width, momentum=spec.batchnorm_momentum, track_running_stats=not spec.depends_on_batch)


class ConvBlock(nn.Module):
    """`convolutions / 2` groups, the first with pooling; the output is the representation."""

    def __init__(self, spec: ConvNet, channels_in: int, rng: torch.Generator) -> None:
        super().__init__()
        self.groups = nn.ModuleList(
            ConvGroup(spec, channels_in if group == 0 else spec.width, pool=group == 0, rng=rng) for group in range(spec.convolutions // 2)
        )

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """Return the representation (B, width, H / 2, W / 2)."""
        return normalised(F.gelu(self.before_activation(maps_BCHW)))

    def before_activation(self, maps_BCHW: Tensor) -> Tensor:
        """Return what the block's last GELU reads."""
        *groups, last = self.groups
        for group in groups:
            maps_BCHW = group(maps_BCHW)
        return last.before_activation(maps_BCHW)  # type: ignore[no-any-return, operator]


class Head(nn.Module):
    """Flatten, linear, scale."""

    def __init__(self, features: int, classes: int, scale: float, rng: torch.Generator) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)
        self.scale = scale
        bound = 1 / math.sqrt(features)
        with torch.no_grad():
            self.linear.weight.uniform_(-bound, bound, generator=rng)
            self.linear.bias.uniform_(-bound, bound, generator=rng)

    def forward(self, maps_BX: Tensor) -> Tensor:
        """Return the logits (B, K)."""
        logits: Tensor = self.linear(maps_BX.flatten(1))
        return logits * self.scale if self.scale != 1 else logits


def dirac_conv(channels_in: int, channels: int, rng: torch.Generator) -> nn.Conv2d:
    """Return a 3x3 convolution without bias: the first `channels_in` filters are identities, the rest Kaiming-uniform."""
    conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.kaiming_uniform_(conv.weight, a=math.sqrt(5), generator=rng)
        nn.init.dirac_(conv.weight[: min(channels_in, channels)])
    return conv


def halve(maps_BCHW: Tensor) -> Tensor:
    """Return the 2x2 maximum with stride 2.

    Of contiguous maps without gradients by long runs of memory, which on CPU is 10 times faster and equal.
    """
    if torch.is_grad_enabled() or torch.compiler.is_exporting() or not maps_BCHW.is_contiguous():
        return F.max_pool2d(maps_BCHW, 2)
    B, C, H, W = maps_BCHW.shape
    # The maximum of every position with the one below and the one to the right, also where it is not wanted; then those that are.
    flat_BCX = maps_BCHW.flatten(2)
    size = (H // 2 * 2 - 1) * W
    rows_BCX = torch.maximum(flat_BCX[..., :size], flat_BCX[..., W : W + size])
    both_BCX = torch.maximum(rows_BCX[..., :-1], rows_BCX[..., 1:])
    corners = _corners(H // 2, W // 2, W, maps_BCHW.device)
    return both_BCX.view(B * C, -1).index_select(1, corners).view(B, C, H // 2, W // 2)


@lru_cache(maxsize=32)
def _corners(height: int, width: int, row: int, device: torch.device) -> Tensor:
    """Return the places of the upper left corners of 2x2 squares in a map whose rows have `row` positions."""
    return (torch.arange(height)[:, None] * 2 * row + torch.arange(width) * 2).flatten().to(device)


def normalised(maps_BX: Tensor) -> Tensor:
    """Return each example's map less its mean, over its standard deviation (over all axes but the first; eps 1e-5)."""
    # One group of channels: what layer_norm over (C, H, W) computes, twice as fast on CPU.
    return F.group_norm(maps_BX, 1, eps=NORMALISE_EPS)
