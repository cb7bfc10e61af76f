"""The committed targets of a round as tensors, checked against the data and the network that will learn from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from repsearch.datasets.base import Data
from repsearch.errors import DaemonError, NumericalError, StoreError
from repsearch.networks import SearchableNetwork, layer_name
from store import Manifest, Reference, RepresentationStore


def read_targets(
    store: RepresentationStore, shards: Sequence[Reference], names: Sequence[str], network: SearchableNetwork, data: Data
) -> dict[str, Tensor]:
    """Return the targets of every training example, in order: name -> (N, X), float16 or float32 as stored (bfloat16 as float32).

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
        for name in names:
            values = _read_array(store, shard, name, (count, *shapes[name]), first)
            whole = targets.setdefault(name, torch.empty((len(data.train), *shapes[name]), dtype=values.dtype))
            whole[first : first + count] = values
    return targets


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
