"""The committed targets of a round as tensors, checked against the data and the network that will learn from them.

Where an example was searched R > 1 times, the arrays have an axis of R results after that of the examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from repsearch.datasets.base import Data
from repsearch.errors import DaemonError, NumericalError, StoreError
from repsearch.networks import SearchableNetwork, layer_name
from repsearch.seeding import generator
from store import Manifest, Reference, RepresentationStore

Pick = Literal["best", "random"] | int
"""Which of several results of an example is read; see `learn.targets`."""


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
    """Return the targets of every training example, in order: name -> (N, X), float16 or float32 as stored (bfloat16 as float32).

    `searches`: results per example. Of several, `pick` is read: the fittest ("best", mean over the search layers), all of them for
    "random": (N, R, X), or the one of a number.

    Raises `StoreError` naming the shard whose layers or shapes do not fit, or the examples that no shard or two shards cover;
    `DaemonError` for targets of other data; `NumericalError` naming array and example for a value that is not finite.
    """
    if not names:
        return {}
    manifests = sorted(((shard, store.manifest(shard)) for shard in shards), key=lambda pair: int(pair[1].attributes["first"]))
    _check_cover(manifests, len(data.train))
    shapes = expected_shapes(network)
    targets: dict[str, Tensor] = {}
    for shard, manifest in manifests:
        _check_shard(shard, manifest, names, data)
        first, count = int(manifest.attributes["first"]), int(manifest.attributes["count"])
        several = (searches,) if searches > 1 else ()
        chosen = _chosen(store, shard, count, pick) if several and pick != "random" else None
        for name in names:
            values = _read_array(store, shard, name, (count, *several, *shapes[name]), first)
            if chosen is not None:
                values = values[torch.arange(count), chosen]
            whole = targets.setdefault(name, torch.empty((len(data.train), *values.shape[1:]), dtype=values.dtype))
            whole[first : first + count] = values
    return targets


def draw_results(examples: int, searches: int, *, seed: int, round: int, epoch: int) -> Tensor:
    """Return which of its `searches` results each example learns from in `epoch`: int64 (N,), one draw for all layers."""
    return torch.randint(searches, (examples,), generator=generator(seed, "learn", round, epoch, "targets"))


def _chosen(store: RepresentationStore, shard: Reference, count: int, pick: Pick) -> Tensor:
    """Return the number of each example's result to read."""
    return torch.full((count,), pick) if isinstance(pick, int) else _fittest(store, shard)


def _fittest(store: RepresentationStore, shard: Reference) -> Tensor:
    """Return the result of each example with the highest fitness, mean over the search layers; of equal ones the earlier."""
    return torch.from_numpy(store.read(shard, "fitness_after").mean(axis=2).argmax(axis=1))


def expected_shapes(network: SearchableNetwork) -> dict[str, tuple[int, ...]]:
    """Return the shape of each layer's targets by array name, without the example axis."""
    return {layer_name(layer, network.logits_layer): network.layer_shape(layer) for layer in range(network.logits_layer + 1)}


def _check_cover(manifests: Sequence[tuple[Reference, Manifest]], examples: int) -> None:
    reached = 0
    for shard, manifest in manifests:
        first, count = int(manifest.attributes["first"]), int(manifest.attributes["count"])
        if first != reached:
            fault = f"examples {reached}..{first - 1} are in no shard" if first > reached else f"examples from {first} are in two shards"
            raise StoreError(f"targets: {fault} (before {shard.path}); search the round again")
        reached += count
    if reached != examples:
        raise StoreError(
            f"targets: shards cover {reached} examples, the training set has {examples}; search the round again with these data"
        )


def _check_shard(shard: Reference, manifest: Manifest, names: Sequence[str], data: Data) -> None:
    attributes: Mapping[str, object] = manifest.attributes
    if attributes.get("kind") != "search":
        raise StoreError(f"{shard.path}: kind is {attributes.get('kind')!r}, not 'search'; it holds no targets")
    if attributes.get("dataset_digest") != data.digest:
        raise DaemonError(
            f"{shard.path}: searched on data of digest {attributes.get('dataset_digest')}, the learner has {data.digest}; "
            "give searcher and learner the same dataset files"
        )
    missing = [name for name in names if name not in manifest.arrays]
    if missing:
        raise StoreError(
            f"{shard.path}: no targets {', '.join(missing)}; it holds {', '.join(sorted(manifest.arrays))}; check search.layers"
        )


def _read_array(store: RepresentationStore, shard: Reference, name: str, shape: tuple[int, ...], first: int) -> Tensor:
    values = store.read(shard, name)
    if values.shape != shape:
        raise StoreError(f"{shard.path}: {name} has shape {values.shape}, expected {shape}; the searched network has other block outputs")
    finite = np.isfinite(values).reshape(len(values), -1).all(1)
    if not finite.all():
        raise NumericalError(f"{shard.path}: {name} of example {first + int(finite.argmin())} is not finite; search the shard again")
    return torch.from_numpy(np.ascontiguousarray(values))
