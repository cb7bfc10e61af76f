"""What search and learning need of a network.

Shapes: B examples; C, H, W of an image or of a block output (a vector output has shape (D,)); K classes.
The representation of block l is its output, normalised per example where the network says so; layer `len(blocks)` is the logits.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from repsearch.config import LOGITS

Shape = tuple[int, ...]

BlockOutput = Literal["representation", "raw", "before_activation"]
"""What a block puts out: its representation; its output before any normalisation per example; what its last activation reads."""


class SearchableNetwork(nn.Module):
    """A network cut into `stem`, `blocks` and `head`; subclasses assign them and define `block_shapes`.

    Input images are uint8 or float tensors (B, C, H, W) in 0..255; the per-channel mean and standard deviation that `prepare` applies
    are buffers, so a saved network needs nothing else to classify.
    """

    mean: Tensor
    std: Tensor
    stem: nn.Module
    blocks: nn.ModuleList
    head: nn.Module
    block_shapes: tuple[Shape, ...]
    """Shape of each block's representation, without the example axis."""
    classes: int
    input_shape: Shape
    """(C, H, W) of an image; `build_network` sets it."""
    normalises: bool = False
    """Whether block representations are normalised per example already."""

    def __init__(self, *, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float().reshape(1, -1, 1, 1).clone())
        self.register_buffer("std", std.float().reshape(1, -1, 1, 1).clone())

    @property
    def logits_layer(self) -> int:
        """Number of the layer after the last block: the logits."""
        return len(self.blocks)

    def layer_shape(self, layer: int) -> Shape:
        """Shape of the representation of `layer`, without the example axis."""
        return (self.classes,) if layer == self.logits_layer else self.block_shapes[layer]

    def prepare(self, images_BCHW: Tensor) -> Tensor:
        """Return images scaled to 0..1, less the channel mean, over the channel standard deviation; float32."""
        return (images_BCHW.to(self.mean.dtype) / 255 - self.mean) / self.std

    def run_layer(self, layer: int, below_BX: Tensor) -> Tensor:
        """Return the representation of `layer` from that of the layer before (from the stem's output for layer 0)."""
        if layer == self.logits_layer:
            return self.head(below_BX)  # type: ignore[no-any-return]
        return self.blocks[layer](below_BX)  # type: ignore[no-any-return]

    def run_block(self, layer: int, below_BX: Tensor, output: BlockOutput) -> tuple[Tensor, Tensor]:
        """Return the representation of block `layer`, and its `output`, of the same shape.

        A network whose specification lists more than "representation" among its `outputs` overrides this.
        """
        assert output == "representation", f"{type(self).__name__} gives no {output}"
        representation_BX = self.run_layer(layer, below_BX)
        return representation_BX, representation_BX

    def run_from(self, layer: int, representation_BX: Tensor) -> Tensor:
        """Return the logits (B, K) from the representation of `layer`; at the logits layer, the representation itself."""
        for above in range(layer + 1, self.logits_layer + 1):
            representation_BX = self.run_layer(above, representation_BX)
        return representation_BX

    def run_prepared(self, inputs_BCHW: Tensor) -> list[Tensor]:
        """Return every representation, the logits last, of inputs that `prepare` made."""
        representations = []
        below = self.stem(inputs_BCHW)
        for layer in range(self.logits_layer + 1):
            below = self.run_layer(layer, below)
            representations.append(below)
        return representations

    def representations(self, images_BCHW: Tensor) -> list[Tensor]:
        """Return the representation of every block, and the logits last."""
        return self.run_prepared(self.prepare(images_BCHW))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the logits (B, K)."""
        return self.representations(images_BCHW)[-1]


def layer_name(layer: int | str, blocks: int) -> str:
    """Return `block0`, `block1`, ... or `logits` for a search layer of a network of `blocks` blocks."""
    return LOGITS if layer in (blocks, LOGITS) else f"block{layer}"


def layer_number(layer: int | str, blocks: int) -> int:
    """Return the number of a configured search layer: itself, or `blocks` for the logits."""
    return blocks if layer == LOGITS else int(layer)


def outputs_of_blocks(spec: Any) -> tuple[BlockOutput, ...]:
    """Return what the blocks of the network that `spec` describes can put out; see `NetworkSpec`."""
    outputs: tuple[BlockOutput, ...] = getattr(spec, "outputs", ("representation",))
    return outputs


def depends_on_batch(spec: Any) -> bool:
    """Return whether an example's output depends on the others of its batch; see `NetworkSpec`."""
    return bool(getattr(spec, "depends_on_batch", False))


class NetworkSpec(Protocol):
    """A member of the network family: hyperparameters, from which networks are built.

    A member may have two more properties. `outputs`, a tuple of `BlockOutput`: what `run_block` can return; without it
    "representation" alone. `depends_on_batch`: whether an example's output depends on the others of its batch, so that the network cannot
    be searched; without it False.
    """

    def check(self, input_shape: Shape) -> tuple[Shape, ...]:
        """Return the shapes of the block representations for images of `input_shape` (C, H, W).

        Raises `ConfigError` if the network cannot take such images.
        """
        ...

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
        """Return a network with initial parameters drawn from `rng`; `stem_images` (N, C, H, W) uint8 fit a data-dependent stem."""
        ...
