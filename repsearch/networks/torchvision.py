"""Any torchvision classifier, cut into stages by module name.

The stem is everything before the first named module, block i ends where the i-th named module ends, and the head is the rest. A model
can be cut after a module if that module's output is all that the rest of the model reads (so after a residual block, not inside one),
and if it is a feature map (C, H, W) or a vector (D,). `repsearch.networks.cutting` finds the cuts.

The function is torchvision's own: grey images are repeated over the three channels, and block outputs pass on unchanged but for a
fixed scale (see `standardising`; `normalises` is False, so learning normalises for matching only). Parameters are torchvision's random
initial ones. Dropout and stochastic depth are left out: their masks come from the global generator, so a resumed run would not repeat.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
import torchvision
from pydantic import Field
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from repsearch.errors import ConfigError
from repsearch.families import nearest
from repsearch.networks.base import BlockOutput, SearchableNetwork, Shape
from repsearch.networks.cutting import cut, parts_of
from repsearch.networks.standardising import Standardise

_UNFIT = {
    "swin": "its feature maps have the channels last",
    "vit": "its representations are sequences of tokens",
    "googlenet": "it has auxiliary classifiers",
    "inception": "it has auxiliary classifiers",
}
"""Beginnings of the names of models that cannot be used, and why."""

_SIDES = (8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 299, 384, 512)
"""Image sides tried, in pixels, to find the smallest that a model takes."""


@dataclass(frozen=True, kw_only=True)
class Torchvision:
    """Hyperparameters of a torchvision classifier.

    model: name of the model, as in `torchvision.models.list_models`.
    stages: names of the modules that end the blocks, in the model's order.
    """

    outputs: ClassVar[tuple[BlockOutput, ...]] = ("representation", "raw")

    model: str = "resnet18"
    stages: Annotated[list[str], Field(min_length=1)] = field(default_factory=lambda: ["layer1", "layer2", "layer3", "layer4"])

    def __post_init__(self) -> None:
        twice = [stage for stage in self.stages if self.stages.count(stage) > 1]
        if twice:
            raise ValueError(f"stages names {twice[0]!r} twice; name each stage once")

    def check(self, input_shape: Shape) -> tuple[Shape, ...]:
        """Return the shapes of the block representations; raises `ConfigError` if model, stages and images do not fit one another."""
        self._check_model(input_shape)
        with _WithoutStorage():
            model = _new_model(self.model, classes=2).eval()
        parts = [part.eval() for part in parts_of(model, cut(model, self.stages, at="network.stages"))]
        try:
            shapes = _shapes(parts, *input_shape[1:])
        except _DOES_NOT_FIT as error:
            raise ConfigError(_too_small(self.model, parts, *input_shape[1:])) from error
        for stage, shape in zip(self.stages, shapes, strict=True):
            if len(shape) not in (1, 3):
                raise ConfigError(
                    f"network.stages: the output of {stage!r} has shape {_text(shape)}, neither a map (C, H, W) nor a vector (D,); "
                    "name another module"
                )
        return shapes

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
        return TorchvisionModule(self, input_shape=input_shape, classes=classes, mean=mean, std=std, rng=rng)

    def _check_model(self, input_shape: Shape) -> None:
        for beginning, reason in _UNFIT.items():
            if self.model.startswith(beginning):
                raise ConfigError(
                    f"network.model: {self.model!r} cannot be searched: {reason}; "
                    "take a resnet, vgg, mobilenet, efficientnet, densenet, convnext or regnet"
                )
        listed = torchvision.models.list_models(module=torchvision.models)
        known = [name for name in listed if not name.startswith(tuple(_UNFIT))]
        if self.model not in known:
            meant = nearest(self.model, known)
            raise ConfigError(f"network.model: torchvision has no classifier {self.model!r}{meant}; known: {', '.join(known)}")
        if input_shape[0] not in (1, 3):
            raise ConfigError(
                f"network.model: {self.model!r} takes colour or grey images, and the dataset's have {input_shape[0]} channels; "
                "take the network `convnet` or `mlp`"
            )


class TorchvisionModule(SearchableNetwork):
    """The network that a `Torchvision` describes."""

    def __init__(self, spec: Torchvision, *, input_shape: Shape, classes: int, mean: Tensor, std: Tensor, rng: torch.Generator) -> None:
        super().__init__(mean=mean, std=std)
        self.block_shapes = spec.check(input_shape)
        self.classes = classes
        # torchvision draws from the global generator: lend it one seeded by `rng`, and put its state back.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=rng)))
            model = _new_model(spec.model, classes)
        stem, *blocks, head = parts_of(model, cut(model, spec.stages, at="network.stages"))
        self.stem = Stem(stem, repeat=3 // input_shape[0])
        scales = [Standardise() for _ in blocks]
        self.blocks = nn.ModuleList(Part(block, *around) for block, around in zip(blocks, _pairs(scales), strict=False))
        self.head = Part(head, scales[-1], None)

    def run_block(self, layer: int, below_BX: Tensor, output: BlockOutput) -> tuple[Tensor, Tensor]:
        """Return representation and `output` of a block; the representation is not normalised per example, so it is the raw output too."""
        assert output in ("representation", "raw"), output
        return super().run_block(layer, below_BX, "representation")


class Stem(nn.Module):
    """The model before the first block, on images whose channels are repeated `repeat` times."""

    def __init__(self, part: nn.Module, repeat: int) -> None:
        super().__init__()
        self.part = part
        self.repeat = repeat

    def forward(self, inputs_BCHW: Tensor) -> Tensor:
        """Return what the first block reads."""
        # Also where there is nothing to repeat and nothing to compute, a new tensor: the first block may work in place.
        return self.part(inputs_BCHW.repeat(1, self.repeat, 1, 1))  # type: ignore[no-any-return]


class Part(nn.Module):
    """A stretch of the model between representations; the scale after one part and before the next is the same module."""

    def __init__(self, part: nn.Module, before: Standardise | None, after: Standardise | None) -> None:
        super().__init__()
        self.before, self.part, self.after = before, part, after

    def forward(self, below_BX: Tensor) -> Tensor:
        """Return the representation (logits, for the head) from the one before (from the stem's output, for block 0)."""
        output_BX: Tensor = self.part(below_BX if self.before is None else self.before.undo(below_BX))
        return output_BX if self.after is None else self.after(output_BX)


class _WithoutStorage(TorchFunctionMode):
    """Parameters and buffers made in this context have shapes only: checking a model costs no memory and no random numbers.

    `torch.device("meta")` as context would do, but regnet reads the values of tensors it computes its widths with.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


_DOES_NOT_FIT = (RuntimeError, ValueError, AssertionError)
"""What torch and torchvision raise for images of a size that a model cannot take."""


def _new_model(name: str, classes: int) -> nn.Module:
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, (nn.Dropout, torchvision.ops.StochasticDepth)):
                setattr(parent, child_name, nn.Identity())
    return model


def _pairs(scales: list[Standardise]) -> list[tuple[Standardise | None, Standardise]]:
    return list(zip([None, *scales], scales, strict=False))


@torch.no_grad()
def _shapes(parts: list[fx.GraphModule], height: int, width: int) -> tuple[Shape, ...]:
    """Return the shapes of what the blocks put out for images of this size; raises one of `_DOES_NOT_FIT`."""
    below = torch.empty(2, 3, height, width, device="meta")
    shapes = []
    for part in parts:
        below = part(below)
        shapes.append(tuple(below.shape[1:]))
        if 0 in below.shape:
            raise ValueError("a map shrinks to nothing")
    return tuple(shapes[1:-1])


def _too_small(model: str, parts: list[fx.GraphModule], height: int, width: int) -> str:
    """Return the message for images of a size that the model does not take, with the smallest that it takes."""
    where = f"network.model: {model!r} does not take {height}x{width} images"
    failed = min(height, width)
    for side in (side for side in _SIDES if side > failed):
        if _fits(parts, side):
            return f"{where}, it needs {_smallest(parts, failed, side)} pixels or more a side; use larger images or another model"
    return f"{where}; use another model"


def _smallest(parts: list[fx.GraphModule], failed: int, fits: int) -> int:
    """Return the least side that fits, above `failed` and up to `fits`."""
    while fits - failed > 1:
        middle = (failed + fits) // 2
        failed, fits = (failed, middle) if _fits(parts, middle) else (middle, fits)
    return fits


def _fits(parts: list[fx.GraphModule], side: int) -> bool:
    try:
        _shapes(parts, side, side)
    except _DOES_NOT_FIT:
        return False
    return True


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))
