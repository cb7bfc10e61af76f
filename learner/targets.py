"""The committed targets of a round, checked against the data and the network that will learn from them.

Manifests alone tell whether the shards fit; values are read, verified, when they are wanted. Where an example was searched R > 1 times,
the arrays have an axis of R results after that of the examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from repsearch.datasets.base import Data
from repsearch.errors import DaemonError, NumericalError, StoreError
from repsearch.networks import SearchableNetwork, layer_name
from repsearch.seeding import generator
from repsearch.windows import Window
from store import Manifest, Reference, RepresentationStore

Pick = Literal["best", "random"] | int
"""Which of several results of an example is read; see `learn.targets`."""


@dataclass(frozen=True)
class Shard:
    """A committed shard: targets of the examples [first, first + count) of the window that begins at training example `base`."""

    reference: Reference
    manifest: Manifest
    first: int
    count: int
    base: int = 0


@dataclass(frozen=True)
class CommittedTargets:
    """The targets of every example of a window of the training set, in the store.

    shards: in the order of their examples, which they cover once. shapes: of one result, by array name. searches: R, results per example.
    """

    store: RepresentationStore
    shards: tuple[Shard, ...]
    shapes: Mapping[str, tuple[int, ...]]
    searches: int
    pick: Pick

    def __len__(self) -> int:
        return sum(shard.count for shard in self.shards)

    def drawn(self) -> int:
        """Number of results of an example that an epoch draws one of; 1: nothing is drawn."""
        return self.searches if self.pick == "random" else 1

    def dtype(self, name: str) -> np.dtype[np.generic]:
        """Return the type of the values in memory: as stored, bfloat16 as float32."""
        logical = self.shards[0].manifest.arrays[name].logical_dtype
        return np.dtype(np.float32 if logical == "bfloat16" else logical)

    def result_bytes(self, name: str) -> int:
        """Bytes of one result of one example in memory."""
        return self.dtype(name).itemsize * math.prod(self.shapes[name])

    def read(self, shard: Shard, name: str, rows: slice) -> np.ndarray:
        """Return all results of the shard's examples `rows` (numbered in the shard): (count, [R,] X), verified and finite.

        Raises `StoreError` for a chunk that is not what was written, `NumericalError` naming array and example for a value that is not
        finite.
        """
        values = self.store.read(shard.reference, name, rows)
        finite = _finite(values)
        if not finite.all():
            example = shard.base + shard.first + (rows.start or 0) + int(finite.argmin())
            raise NumericalError(f"{shard.reference.path}: {name} of example {example} is not finite; search the shard again")
        return values

    def chosen(self) -> np.ndarray | None:
        """Return the number of each example's result to learn from, int64 (N,); None if there is one each, or every epoch draws."""
        if self.searches == 1 or self.drawn() > 1:
            return None
        return np.concatenate([self._chosen(shard) for shard in self.shards])

    def whole(self) -> dict[str, Tensor]:
        """Return the targets of every example: name -> (N, X), of the results chosen; (N, R, X) where every epoch draws."""
        chosen_N = self.chosen()
        targets: dict[str, Tensor] = {}
        for name, shape in self.shapes.items():
            several = (self.searches,) if self.searches > 1 and chosen_N is None else ()
            values = np.empty((len(self), *several, *shape), self.dtype(name))
            for shard in self.shards:
                part, rows = self.read(shard, name, slice(0, shard.count)), slice(shard.first, shard.first + shard.count)
                values[rows] = part if chosen_N is None else part[np.arange(shard.count), chosen_N[rows]]
            targets[name] = torch.from_numpy(values)
        return targets

    def _chosen(self, shard: Shard) -> np.ndarray:
        if isinstance(self.pick, int):
            return np.full(shard.count, self.pick)
        # The highest fitness, mean over the search layers; of equal ones the earlier.
        best: np.ndarray = self.store.read(shard.reference, "fitness_after").mean(axis=2).argmax(axis=1)
        return best


def find_targets(
    store: RepresentationStore,
    references: Sequence[Reference],
    names: Sequence[str],
    network: SearchableNetwork,
    data: Data,
    *,
    searches: int = 1,
    pick: Pick = "best",
    searched: str = "",
    window: Window | None = None,
) -> CommittedTargets:
    """Return the targets in arrays `names` of the shards `references`, checked by their manifests; none of their values is read.

    searches: results per example. pick: of several, the fittest ("best"), one drawn in every epoch ("random"), or that of a number.
    searched: digest of the network that they must have been searched on, if it is known.
    window: the examples that they are of, all of them if None; the shards of the result are numbered in it.

    Raises `StoreError` naming the shard whose layers, shapes or searched network do not fit, or the examples that no shard or two shards
    cover; `DaemonError` for targets of other data.
    """
    window = window or Window(0, len(data.train))
    found = [_shard(reference, store.manifest(reference), window.first) for reference in references]
    shards = tuple(sorted(found, key=lambda shard: shard.first))
    _check_cover(shards, window.count)
    all_shapes = expected_shapes(network)
    targets = CommittedTargets(store, shards, {name: all_shapes[name] for name in names}, searches, pick)
    for shard in shards:
        _check_shard(shard, names, data, searched)
        for name, shape in targets.shapes.items():
            _check_shape(shard, name, (shard.count, *((searches,) if searches > 1 else ()), *shape))
            if shard.manifest.arrays[name].logical_dtype != shards[0].manifest.arrays[name].logical_dtype:
                raise StoreError(f"{shard.reference.path}: {name} is stored in another precision than in {shards[0].reference.path}")
    return targets


def read_targets(
    store: RepresentationStore,
    shards: Sequence[Reference],
    names: Sequence[str],
    network: SearchableNetwork,
    data: Data,
    *,
    searches: int = 1,
    pick: Pick = "best",
) -> dict[str, Tensor]:
    """Return the targets of every training example in memory; see `find_targets` and `CommittedTargets.whole`."""
    return find_targets(store, shards, names, network, data, searches=searches, pick=pick).whole() if names else {}


def draw_results(examples: int, searches: int, *, seed: int, round: int, epoch: int) -> Tensor:
    """Return which of its `searches` results each example learns from in `epoch`: int64 (N,), one draw for all layers."""
    return torch.randint(searches, (examples,), generator=generator(seed, "learn", round, epoch, "targets"))


def expected_shapes(network: SearchableNetwork) -> dict[str, tuple[int, ...]]:
    """Return the shape of each layer's targets by array name, without the example axis."""
    return {layer_name(layer, network.logits_layer): network.layer_shape(layer) for layer in range(network.logits_layer + 1)}


def chunks_of(shard: Shard, name: str, rows: range) -> Iterator[slice]:
    """Yield `rows` of the shard cut where the chunks of array `name` end: a read of each touches one chunk."""
    size = shard.manifest.arrays[name].chunk_rows
    start = rows.start
    while start < rows.stop:
        stop = min((start // size + 1) * size, rows.stop)
        yield slice(start, stop)
        start = stop


def _finite(values: np.ndarray) -> np.ndarray:
    """Return whether all values of each row are finite: bool (rows,)."""
    # Exponent of all ones: numpy converts every float16 to tell, which takes longer than reading it.
    finite = values.view(np.uint16) & _EXPONENT != _EXPONENT if values.dtype == np.float16 else np.isfinite(values)
    rows: np.ndarray = finite.reshape(len(values), -1).all(1)
    return rows


_EXPONENT = np.uint16(0x7C00)


def _shard(reference: Reference, manifest: Manifest, base: int) -> Shard:
    if manifest.attributes.get("kind") != "search":
        raise StoreError(f"{reference.path}: kind is {manifest.attributes.get('kind')!r}, not 'search'; it holds no targets")
    return Shard(reference, manifest, int(manifest.attributes["first"]) - base, int(manifest.attributes["count"]), base)


def _check_cover(shards: Sequence[Shard], examples: int) -> None:
    reached = 0
    for shard in shards:
        if shard.first != reached:
            gap = shard.first > reached
            at = shard.base
            fault = (
                f"examples {at + reached}..{at + shard.first - 1} are in no shard"
                if gap
                else f"examples from {at + shard.first} are in two shards"
            )
            raise StoreError(f"targets: {fault} (before {shard.reference.path}); search the round again")
        reached += shard.count
    if reached != examples:
        raise StoreError(f"targets: shards cover {reached} examples, the round has {examples}; search it again with these data")


def _check_shard(shard: Shard, names: Sequence[str], data: Data, searched: str) -> None:
    attributes, path = shard.manifest.attributes, shard.reference.path
    if attributes.get("dataset_digest") != data.digest:
        raise DaemonError(
            f"{path}: searched on data of digest {attributes.get('dataset_digest')}, the learner has {data.digest}; "
            "give searcher and learner the same dataset files"
        )
    if searched and attributes.get("network_digest") != searched:
        raise StoreError(
            f"{path}: searched on the network of digest {str(attributes.get('network_digest'))[:12]}, the round searches {searched[:12]}; "
            "search the round again"
        )
    missing = [name for name in names if name not in shard.manifest.arrays]
    if missing:
        held = ", ".join(sorted(shard.manifest.arrays))
        raise StoreError(f"{path}: no targets {', '.join(missing)}; it holds {held}; check search.layers")


def _check_shape(shard: Shard, name: str, shape: tuple[int, ...]) -> None:
    found = shard.manifest.arrays[name].shape
    if found != shape:
        raise StoreError(
            f"{shard.reference.path}: {name} has shape {found}, expected {shape}; the searched network has other block outputs"
        )
