"""Class codes: a fixed random smooth map per class and layer as the target, alone or mixed with the network's own representation.

Nothing is evaluated to choose it. A code depends on the run's seed, the layer and the class, not on the image or the round: it is
standard normal noise per channel and position, smoothed by repeated 3x3 average pooling and normalised as every candidate is. Which
blocks have codes as targets is the choice of `search.layers`; a block that is not searched learns from the later ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from repsearch.footprint import FLOAT_BYTES, Footprint
from repsearch.networks.base import Shape
from repsearch.seeding import seed_of
from searcher.strategies.base import SearchLayer, Traits
from searcher.strategies.evolution import finish
from searcher.strategies.fixed import FixedStrategy, FixedTarget
from searcher.strategies.moves import blurred
from searcher.strategies.schedules import check_blur, check_lengths


@dataclass(frozen=True, kw_only=True)
class ClassCode(FixedStrategy):
    """A target of own representation times (1 - mix) plus class code times mix, normalised; 0 evaluations.

    mix: share of the code; 1: the code alone. Relative size r of code to own representation is mix = r / (1 + r).
    blur_passes: passes of 3x3 average pooling that smooth the code, per search layer (feature maps only).
    logits: targets of the logits: `code`: `logit_scale` for the class and 0 for the others, recentred; `own`: those of the network above
        the code below.
    logit_scale: logit of the class over the others, in nats.
    """

    mix: Annotated[float, Field(ge=0, le=1)] = 1.0
    blur_passes: list[Annotated[int, Field(ge=0)]] = field(default_factory=lambda: [5, 1, 1, 0])
    logits: Literal["code", "own"] = "code"
    logit_scale: Annotated[float, Field(gt=0)] = 5.0

    @property
    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(chooses=False, depends_on=frozenset({"seed"}))

    def check(self, layers: Sequence[int | str], shapes: Sequence[Shape]) -> None:
        """Raise `ConfigError` unless there is one number of passes per layer, and the blur fits the layers' maps."""
        check_lengths({"blur_passes": self.blur_passes}, layers)
        check_blur(self.blur_passes, layers, shapes)

    def footprint(self, position: int, shape: Shape, *, classes: int, results: int) -> Footprint:
        """Return what the strategy holds at a layer; see `Footprint`."""
        # The codes of all classes, as they are drawn, smoothed and normalised.
        return Footprint(candidates=1, held=1, working=4, shared=4 * classes * math.prod(shape) * FLOAT_BYTES)

    def init(self, start_BSGM: Tensor, *, layer: SearchLayer, labels_B: Tensor, keys_B: Tensor) -> FixedTarget:
        """Return the state that holds the target."""
        own_B1GM = start_BSGM[:, :1]
        if layer.kind == "logits" and self.logits == "own":
            return FixedTarget.of(own_B1GM)
        code_B1GM = self.codes(layer)[labels_B][:, None]
        mixed = code_B1GM if self.mix == 1 else own_B1GM * (1 - self.mix) + code_B1GM * self.mix
        return FixedTarget.of(finish(mixed, layer))

    def codes(self, layer: SearchLayer) -> Tensor:
        """Return the code of each class (classes, G, M)."""
        if layer.kind == "logits":
            return finish(torch.eye(layer.classes, device=layer.device)[:, None, None] * self.logit_scale, layer)[:, 0]
        # A generator per class: a class keeps its code whatever the number of classes.
        codes = [
            torch.randn(layer.groups, generator=torch.Generator().manual_seed(seed_of(layer.seed, "code", k))) for k in range(layer.classes)
        ]
        return finish(blurred(torch.stack(codes)[:, None], layer, self.blur_passes[layer.position]), layer)[:, 0].to(layer.device)
