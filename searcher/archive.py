"""Elites from round to round: the fittest candidates of an example's last population are among its next starting candidates.

The first starting candidate, the network's own representation, stays; elites take the last places of the population, which keeps its
size, and are evaluated with it: what they were worth under the network before counts for nothing.

Shapes: N examples; W tiles; T examples of a tile; R searches per example; S starting candidates; K elites; X a representation's own shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from repsearch.archives import elites_name
from repsearch.errors import StoreError
from repsearch.networks.base import SearchableNetwork
from searcher.plan import Group, SearchPlan
from searcher.starting import search_form
from store import Manifest, Reference, RepresentationStore


@dataclass(frozen=True)
class Archive:
    """Elites of training examples from `first` on, by the names of the search layers that have some: (N, R, K, ...), as stored."""

    first: int
    elites: Mapping[str, np.ndarray]

    def starts(
        self, plan: SearchPlan, network: SearchableNetwork, position: int, name: str, starts_WTSX: Tensor, group: Group, replicate: int
    ) -> Tensor:
        """Return the starting candidates of the `position`-th search layer, `name`, with elites in the last places of the population."""
        if name not in self.elites:
            return starts_WTSX
        stored_NRKX = self.elites[name]
        # Padding has elites of the range's own examples, as it has their images.
        rows_WT = (group.index_WT.cpu().numpy() - self.first).clip(0, len(stored_NRKX) - 1)
        elites_WTKX = torch.from_numpy(stored_NRKX[rows_WT, replicate % stored_NRKX.shape[1], : plan.archive])
        # What was stored in few digits is not quite normalised any more. By tiles, whose shape is fixed, so that the bits are.
        formed = [
            search_form(network, plan.layers[position], tile_TKX.to(starts_WTSX).flatten(0, 1)).view(tile_TKX.shape)
            for tile_TKX in elites_WTKX
        ]
        room = plan.strategy.starts(position) - elites_WTKX.shape[2]
        return torch.cat([starts_WTSX[:, :, :room], torch.stack(formed)], dim=2)


def read_archive(
    store: RepresentationStore, shards: Sequence[Reference], names: Sequence[str], *, first: int, count: int
) -> Archive | None:
    """Return the elites of training examples first .. first + count - 1 from the shards that cover them; None without shards.

    Raises `StoreError` naming the shard where one is missing or damaged, or an example is in none.
    """
    if not shards:
        return None
    try:
        found = [(reference, store.manifest(reference)) for reference in shards]
        _check_cover(found, first, first + count)
        # A round may have had other layers than the one before.
        there = [name for name in names if all(elites_name(name) in manifest.arrays for _, manifest in found)]
        return Archive(
            first, {name: np.concatenate([_part(store, *shard, name, first, first + count) for shard in found]) for name in there}
        )
    except StoreError as error:
        raise StoreError(
            f"{error}\nit is the archive that the search of training images {first} to {first + count - 1} starts from; "
            "without it, start another run, or one with search.archive = 0"
        ) from None


def _part(store: RepresentationStore, reference: Reference, manifest: Manifest, name: str, first: int, end: int) -> np.ndarray:
    """Return the elites (N, R, K, ...) of a shard for those of its examples that are among first .. end - 1."""
    begin = manifest.attributes["first"]
    elites = store.read(reference, elites_name(name), slice(max(first - begin, 0), end - begin))
    # One search per example needs no axis of searches.
    return elites if manifest.attributes["searches_per_example"] > 1 else elites[:, None]


def _check_cover(found: Sequence[tuple[Reference, Manifest]], first: int, end: int) -> None:
    reached = first
    for reference, manifest in found:
        begin, count = manifest.attributes["first"], manifest.attributes["count"]
        if not begin <= reached < begin + count:
            raise StoreError(f"{reference.path}: has training images {begin} to {begin + count - 1}, and image {reached} was to come next")
        reached = begin + count
    if reached < end:
        raise StoreError(f"{found[-1][0].path}: ends before training image {reached}, which no other shard has")
