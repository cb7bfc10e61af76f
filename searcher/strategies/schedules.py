"""Checks of the lists that hold one value per search layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from repsearch.errors import ConfigError
from repsearch.networks.base import Shape


def check_lengths(schedules: dict[str, Sequence[float]], layers: Sequence[int | str]) -> None:
    """Raise `ConfigError` unless every schedule has one value per search layer."""
    for name, values in schedules.items():
        if len(values) != len(layers):
            where = f"search.strategy.{name}: {len(values)} values {list(values)}"
            raise ConfigError(f"{where} for {len(layers)} search layers {list(layers)}; give one value each")


def check_blur(passes: Sequence[int], layers: Sequence[int | str], shapes: Sequence[Shape]) -> None:
    """Raise `ConfigError` where repeated 3x3 pooling reaches beyond the layer's map; vectors and logits are never blurred."""
    for count, layer, shape in zip(passes, layers, shapes, strict=True):
        side = min(shape[1:]) if len(shape) == 3 else 1
        if side > 1 and 2 * count + 1 > side:
            size = "x".join(map(str, shape[1:]))
            raise ConfigError(
                f"search.strategy.blur_passes: {count} passes average over {2 * count + 1} positions, and layer {layer!r} has a map of "
                f"{size}; set at most {(side - 1) // 2} for it"
            )


def passes_bound(fitness_B: Tensor, probability: float | None) -> Tensor | None:
    """Return which examples' p(correct) = exp(fitness) has passed `probability`; None without a bound."""
    return None if probability is None else torch.exp(fitness_B) > probability
