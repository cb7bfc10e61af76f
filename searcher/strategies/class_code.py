"""Class codes: a fixed smooth map per class and layer as the target, alone or mixed with the network's own representation.

Nothing is evaluated to choose it. A code depends on a seed, the layer and the class, not on the image or the round: it is standard normal
noise per channel and position, smoothed, and normalised as every candidate is; `latent` moves it along a few random maps of the same
kind, so that a code can be searched (policy `code_search`). Which blocks have codes as targets is the choice of `search.layers`; a block
that is not searched learns from the later ones.

Shapes: see `searcher.strategies.base`; K codes, those of a class side by side; D numbers of `latent`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from repsearch.config import LOGITS
from repsearch.errors import ConfigError
from repsearch.footprint import FLOAT_BYTES, Footprint
from repsearch.networks.base import Shape
from repsearch.seeding import draw, seed_of
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
    code_seed: seed of the codes, where they are not to follow from the run's seed.
    frequency: spatial frequency of the code per search layer, instead of `blur_passes`: the standard deviation of its spectrum, in
        half waves along a side of the map; 0: one value per channel.
    strength: root mean square of the code per search layer, in that of the own representation, before the two are mixed; none: 1.
    codes_per_class: codes of each class and layer; every image has one of them, drawn by its index, in all rounds and layers.
    latent: what a code is moved by, per search layer (of the logits an empty list), class and code: as many numbers each, the weights of
        random maps like the code itself. Numbers of root mean square 1 move it by its own length.
    """

    mix: Annotated[float, Field(ge=0, le=1)] = 1.0
    blur_passes: list[Annotated[int, Field(ge=0)]] = field(default_factory=lambda: [5, 1, 1, 0])
    logits: Literal["code", "own"] = "code"
    logit_scale: Annotated[float, Field(gt=0)] = 5.0
    code_seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    frequency: list[Annotated[float, Field(ge=0, le=1000)]] | None = None
    strength: list[Annotated[float, Field(gt=0, le=1000)]] | None = None
    codes_per_class: Annotated[int, Field(ge=1, le=64)] = 1
    latent: list[list[list[list[float]]]] | None = None

    @property
    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(chooses=False, depends_on=frozenset({"seed"}), one_key=True)

    def check(self, layers: Sequence[int | str], shapes: Sequence[Shape]) -> None:
        """Raise `ConfigError` unless every list has one entry per layer, and the smoothing fits the layers' maps."""
        lists = {"frequency": self.frequency, "strength": self.strength}
        check_lengths({name: values for name, values in lists.items() if values is not None}, layers)
        if self.frequency is None:
            check_lengths({"blur_passes": self.blur_passes}, layers)
            check_blur(self.blur_passes, layers, shapes)
        if self.latent is None:
            return
        if len(self.latent) != len(layers):
            raise ConfigError(f"search.strategy.latent: {len(self.latent)} entries for {len(layers)} search layers {list(layers)}")
        for layer, classes in zip(layers, self.latent, strict=True):
            sizes = {len(numbers) for codes in classes for numbers in codes}
            if layer == LOGITS and classes:
                raise ConfigError("search.strategy.latent: the logits have no code that could be moved; give an empty list for them")
            if layer != LOGITS and (len(sizes) != 1 or sizes == {0} or any(len(codes) != self.codes_per_class for codes in classes)):
                raise ConfigError(
                    f"search.strategy.latent: of layer {layer}, every class needs {self.codes_per_class} lists (codes_per_class) of "
                    "equally many numbers"
                )

    def footprint(self, position: int, shape: Shape, *, classes: int, results: int) -> Footprint:
        """Return what the strategy holds at a layer; see `Footprint`. Raises `ConfigError` for a `latent` of other classes."""
        latent = self._latent_of(position, classes)
        maps = classes * self.codes_per_class + (len(latent[0][0]) if latent else 0)
        # The codes, and the maps that move them, as they are drawn, smoothed and normalised.
        return Footprint(candidates=1, held=1, working=4, shared=4 * maps * math.prod(shape) * FLOAT_BYTES)

    def init(self, start_BSGM: Tensor, *, layer: SearchLayer, labels_B: Tensor, keys_B: Tensor) -> FixedTarget:
        """Return the state that holds the target."""
        own_B1GM = start_BSGM[:, :1]
        if layer.kind == "logits" and self.logits == "own":
            return FixedTarget.of(own_B1GM)
        code_B1GM = self.codes(layer)[self.code_numbers(labels_B, keys_B, layer)][:, None]
        if self.mix == 1:
            return FixedTarget.of(finish(code_B1GM, layer))
        if self.strength is not None and layer.kind == "block":
            code_B1GM = code_B1GM * self.strength[layer.position]
        return FixedTarget.of(finish(own_B1GM * (1 - self.mix) + code_B1GM * self.mix, layer))

    def code_numbers(self, labels_B: Tensor, keys_B: Tensor, layer: SearchLayer) -> Tensor:
        """Return the number of each example's code among `codes`."""
        if layer.kind == "logits" or self.codes_per_class == 1:
            return labels_B
        return labels_B * self.codes_per_class + draw(keys_B, torch.zeros_like(keys_B), self.codes_per_class)

    def codes(self, layer: SearchLayer) -> Tensor:
        """Return the codes (K, G, M): of class k numbers k * codes_per_class and on; of the logits one per class."""
        return _codes(json.dumps(asdict(self)), layer)

    def drawn(self, layer: SearchLayer) -> Tensor:
        """Return `codes`, made anew."""
        if layer.kind == "logits":
            return finish(torch.eye(layer.classes, device=layer.device)[:, None, None] * self.logit_scale, layer)[:, 0]
        # A generator per class: a class keeps its code whatever the number of classes.
        names: list[tuple[int, ...]] = [(k, code) if code else (k,) for k in range(layer.classes) for code in range(self.codes_per_class)]
        codes_KGM = self._maps(layer, "code", names)
        latent = self._latent_of(layer.position, layer.classes)
        if latent:
            weights_KD = torch.tensor(latent).flatten(0, 1)
            maps_DGM = self._maps(layer, "basis", [(number,) for number in range(weights_KD.shape[1])])
            moves_KGM = torch.einsum("kd,dgm->kgm", weights_KD / math.sqrt(weights_KD.shape[1]), maps_DGM)
            codes_KGM = finish((codes_KGM + moves_KGM)[:, None], layer)[:, 0]
        return codes_KGM.to(layer.device)

    def _maps(self, layer: SearchLayer, kind: str, names: Sequence[tuple[int, ...]]) -> Tensor:
        """Return one normalised smooth map (N, G, M) for each of `names`, on the CPU."""
        seed = layer.seed if self.code_seed is None else seed_of(self.code_seed, "class code", layer.position)
        drawn = [torch.randn(layer.groups, generator=torch.Generator().manual_seed(seed_of(seed, kind, *name))) for name in names]
        maps_N1GM = torch.stack(drawn)[:, None]
        if self.frequency is None:
            return finish(blurred(maps_N1GM, layer, self.blur_passes[layer.position]), layer)[:, 0]
        return finish(of_frequency(maps_N1GM, layer, self.frequency[layer.position]), layer)[:, 0]

    def _latent_of(self, position: int, classes: int) -> list[list[list[float]]]:
        latent = [] if self.latent is None else self.latent[position]
        if latent and len(latent) != classes:
            raise ConfigError(f"search.strategy.latent: codes of {len(latent)} classes for a dataset of {classes}")
        return latent


def of_frequency(coefficients_N1GM: Tensor, layer: SearchLayer, frequency: float) -> Tensor:
    """Return maps whose cosine transforms are the coefficients under a Gaussian of deviation `frequency`; vectors as they are."""
    if not layer.is_map:
        return coefficients_N1GM
    height, width = layer.shape[1:]
    (rows_HH, first), (columns_WW, second) = _cosines(height, frequency), _cosines(width, frequency)
    maps = coefficients_N1GM.reshape(-1, height, width) * first[:, None] * second
    return (rows_HH.T @ maps @ columns_WW).reshape(coefficients_N1GM.shape)


def _cosines(size: int, frequency: float) -> tuple[Tensor, Tensor]:
    """Return cosines of 0 to size - 1 half waves, one per row, and the weight of each."""
    waves, places = torch.arange(size, dtype=torch.float64), torch.arange(size, dtype=torch.float64) + 0.5
    weights = torch.exp(-0.5 * (waves / frequency) ** 2) if frequency else (waves == 0).double()
    return torch.cos(math.pi / size * waves[:, None] * places).float(), weights.float()


@lru_cache(maxsize=16)
def _codes(fields: str, layer: SearchLayer) -> Tensor:
    # Made once, not for every tile.
    return ClassCode(**json.loads(fields)).drawn(layer)
