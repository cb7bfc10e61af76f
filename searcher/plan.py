"""What a search depends on, and the examples that are computed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repsearch.datasets.base import Split
from repsearch.search_memory import GROUP_TILES
from repsearch.seeding import keys_of, seed_of
from repsearch.windows import Window
from searcher.evaluating import Precision
from searcher.mixing import Mix
from searcher.strategies.base import SearchStrategy
from searcher.strategies.class_code import ClassCode


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """What a search depends on besides the network and the images.

    layers: search layers in order: block numbers, then `len(network.blocks)` for the logits.
    from_network: start around the network's own representations instead of noisy inputs.
    chained: a layer stands on what was found at the layer before; else every layer starts from the network's own representation.
    mix: how targets are mixed with the network's own representation; None: they are what was found.
    code: class codes that targets of blocks are mixed with after that; None: none.
    searches: results per example.
    archive: elites of each search and layer that are kept for the next round, and the most that it takes from the one before.
    precision: of the forward passes above a searched layer.
    calibration: training images on which the network's statistics are computed anew before it is searched; None: they are as learned.
    compiled: use compiled loops where there are some for strategy, network and device (`searcher.compiled`).
    """

    strategy: SearchStrategy[Any]
    layers: Sequence[int]
    seed: int
    round: int
    input_noise: float
    from_network: bool
    micro_batch: int
    chained: bool = True
    mix: Mix | None = None
    code: ClassCode | None = None
    searches: int = 1
    archive: int = 0
    compiled: bool = True
    precision: Precision = "float32"
    calibration: Window | None = None

    def keys(self, index_T: Tensor, replicate: int, purpose: str, *parts: int) -> Tensor:
        """Return a key per example for `purpose`; independent searches of an example (`replicate` from 0) have their own."""
        more: tuple[int | str, ...] = ("replicate", replicate) if replicate else ()
        return keys_of(seed_of(self.seed, purpose, self.round, *parts, *more), index_T)

    def search_keys(self, index_T: Tensor, replicate: int, position: int) -> Tensor:
        """Return the key per example that the strategy is given at the `position`-th search layer."""
        if self.strategy.traits.one_key:
            return self.example_keys(index_T)
        return self.keys(index_T, replicate, "search", self.layers[position])

    def example_keys(self, index_T: Tensor) -> Tensor:
        """Return the key per example that is the same in every round, layer and search."""
        return keys_of(seed_of(self.seed, "example"), index_T)


@dataclass(frozen=True)
class Group:
    """W tiles of T examples: images uint8 (W, T, C, H, W), labels and example indices; rows that are not `real_WT` are padding."""

    images_WTCHW: Tensor
    labels_WT: Tensor
    index_WT: Tensor
    real_WT: Tensor


def groups_of(plan: SearchPlan, split: Split, *, first: int, count: int, device: torch.device) -> Iterator[Group]:
    """Return examples first .. first + count - 1 in groups of tiles.

    Tiles are aligned to example indices, and one at the edge of the range is padded: every matrix product has the same shape, and an
    example its place in it, whatever the range.
    """
    tile = plan.micro_batch
    starts = torch.arange(first - first % tile, first + count, tile)
    for group in torch.split(starts, GROUP_TILES if plan.strategy.traits.stops else 1):
        index_WT = group[:, None] + torch.arange(tile)
        # Padding repeats the range's own examples; their rows are dropped.
        taken_WT = index_WT.clamp(first, first + count - 1)
        parts = (split.images[taken_WT], split.labels[taken_WT], index_WT, taken_WT == index_WT)
        yield Group(*(part.to(device) for part in parts))
