"""Class codes as vectors: what of the strategy `class_code` each coordinate stands for.

A coordinate of 0 means what the configuration has, and 1 a bold change of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Gene = Literal["latent", "frequency", "strength", "mix", "codes"]
_DIGITS = 6
"""Digits that fields keep, so that machines whose last bits differ write the same ones."""
_MIX_STEP = 0.25
_LEAST, _MOST = 0.05, 100.0
"""Bounds of frequency and strength."""


@dataclass(frozen=True, kw_only=True)
class Genome:
    """Layout of a code's vector.

    strategy: the configuration's table of `class_code`. blocks: positions of the search layers that are blocks; layers: number of all.
    latent: numbers per class, code and block. per_block: each block has its own, or all blocks share them.
    """

    genes: Sequence[Gene]
    strategy: Mapping[str, Any]
    blocks: Sequence[int]
    layers: int
    classes: int
    latent: int
    per_block: bool

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        return (len(self.blocks) if self.per_block else 1, self.classes, int(self.strategy["codes_per_class"]), self.latent)

    def sizes(self) -> dict[Gene, int]:
        """Return how many coordinates each gene has, in order."""
        counts: dict[Gene, int] = {
            "latent": math.prod(self._shape),
            "frequency": len(self.blocks),
            "strength": len(self.blocks),
            "mix": 1,
            "codes": 1,
        }
        return {gene: counts[gene] for gene in counts if gene in self.genes}

    def groups(self) -> np.ndarray:
        """Return the group of each coordinate: those of a class together, every other by itself."""
        groups: list[int] = []
        for gene, size in self.sizes().items():
            first = max(groups, default=-1) + 1
            if gene == "latent":
                groups += np.broadcast_to(np.arange(self.classes)[:, None, None], self._shape).ravel().tolist()
            else:
                groups += range(first, first + size)
        return np.array(groups)

    def fields(self, vector: np.ndarray) -> dict[str, Any]:
        """Return the fields of `class_code` that the vector (D,) stands for."""
        sizes = self.sizes()
        parts = dict(zip(sizes, np.split(vector, np.cumsum(list(sizes.values()))[:-1]), strict=True))
        fields: dict[str, Any] = {}
        if "codes" in parts:
            fields["codes_per_class"] = self._codes(float(parts["codes"][0]))
        if "latent" in parts:
            fields["latent"] = self._latent(parts["latent"], fields.get("codes_per_class", self.strategy["codes_per_class"]))
        for name in ("frequency", "strength"):
            if name in parts:
                fields[name] = self._scaled(name, parts[name])
        if "mix" in parts:
            fields["mix"] = round(min(1.0, max(0.0, self.strategy["mix"] + _MIX_STEP * float(parts["mix"][0]))), _DIGITS)
        return fields

    def _codes(self, value: float) -> int:
        most = int(self.strategy["codes_per_class"])
        return min(most, 1 + math.floor(most * 0.5 * (1 + math.erf(value / math.sqrt(2)))))

    def _latent(self, values: np.ndarray, codes: int) -> list[Any]:
        per_block = np.round(values.reshape(self._shape)[:, :, :codes], _DIGITS).tolist()
        places = {position: per_block[number if self.per_block else 0] for number, position in enumerate(self.blocks)}
        return [places.get(position, []) for position in range(self.layers)]

    def _scaled(self, name: str, values: np.ndarray) -> list[float]:
        scaled = list(self.strategy[name] or [1.0] * self.layers)
        for position, value in zip(self.blocks, values, strict=True):
            scaled[position] = round(min(_MOST, max(_LEAST, scaled[position] * 2.0 ** float(value))), _DIGITS)
        return scaled
