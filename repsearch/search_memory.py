"""How many images are searched together: what a search needs in memory, and what `search.memory_mb` leaves room for.

The need is computed from the configuration and from shapes, never from the machine: results depend on the number in their last bits, and
every searcher must come to the same one. It is an upper bound of the growth of the searcher's memory while it searches: a copy of the
network, noise tables, and per image the strategy's state and candidates, what the network makes of them, and the results of the layers
done. Not in it: libraries (the compiler of `searcher.compiled` takes some 150 MB at its first use), the data set, the network as it was
read, and results that are yet to be written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from repsearch.config import RunConfig
from repsearch.datasets.base import Data
from repsearch.errors import ConfigError
from repsearch.families import NETWORKS, STRATEGIES
from repsearch.footprint import FLOAT_BYTES, Footprint, footprint_of, groups_of
from repsearch.networks import build_network, depends_on_batch, layer_number
from repsearch.networks.activations import bytes_above, bytes_below, bytes_held, check_runs_alone
from repsearch.networks.base import SearchableNetwork, Shape

GROUP_TILES = 8
"""Tiles searched side by side where images stop early, so that those left over fill whole tiles again."""

AUTO_EXAMPLES = 64
"""The most images per tile that `"auto"` chooses: more are slower on a CPU, and a shard's last tile is filled up with padding."""

MB = 2**20
_LIBRARY_BYTES = 48 * MB
"""What libraries keep once they have run: compiled convolutions, allocator pools."""
_SAFETY = 1.75
"""Factor on what is counted: copies inside operations, freed memory that the allocator has not given back."""
_INDEX_BYTES = 160
"""Integers and moments per candidate and group while children are made."""
_NOISE_COPIES = 6
"""Copies of the input noise while it is drawn: 64-bit counters and hashes, and the numbers made of them."""


@dataclass(frozen=True, kw_only=True)
class SearchMemory:
    """Bytes that a search takes: `fixed`, and `per_example` for every image of a tile."""

    fixed: int
    per_example: int

    def need(self, examples: int) -> int:
        """Return the bytes that tiles of `examples` images take."""
        return self.fixed + examples * self.per_example

    def most(self, budget: int) -> int:
        """Return the most images per tile that `budget` bytes leave room for; 0: not even one."""
        return max(0, (budget - self.fixed) // self.per_example)


def tile_of(config: RunConfig, data: Data, strategy: Any, networks: Sequence[SearchableNetwork] | None = None) -> int:
    """Return the images per tile that `config` asks for, or the power of two that its memory budget leaves room for.

    networks: `networks_searched`, for who asks more than once.
    Raises `ConfigError` naming need and budget if that does not fit, and naming the layer if the network above one does not run.
    """
    memory, budget, wanted = search_memory(config, data, strategy, networks), config.search.memory_mb * MB, config.search.micro_batch
    least = 1 if wanted == "auto" else wanted
    if memory.need(least) > budget:
        images = "one image" if least == 1 else f"search.micro_batch = {least} images"
        raise ConfigError(
            f"search.memory_mb: {images} at a time need {_mb(memory.need(least))} MB, and the budget is "
            f"{config.search.memory_mb} MB; {_way_out(memory, budget, least)}"
        )
    if wanted == "auto":
        return min(AUTO_EXAMPLES, 1 << memory.most(budget).bit_length() - 1)
    return wanted


def networks_searched(config: RunConfig, data: Data) -> list[SearchableNetwork]:
    """Return a network as round 0 searches it, and one as later rounds do where those are of another kind."""
    tables = [config.search_network()]
    # A learned network whose results depend on the batch is never searched.
    if config.network != tables[0] and not depends_on_batch(NETWORKS.build(config.network, at="network")):
        tables.append(config.network)
    return [build_network(table, data, seed=config.run.seed, purpose="searched") for table in tables]


def search_memory(config: RunConfig, data: Data, strategy: Any, networks: Sequence[SearchableNetwork] | None = None) -> SearchMemory:
    """Return what searching takes, of round 0's network or of a learned one, whichever is more: all rounds have the same tile."""
    networks = networks or networks_searched(config, data)
    layers = [layer_number(layer, networks[0].logits_layer) for layer in config.search.layers]
    search = config.search
    needs = [
        memory_of(
            strategy,
            network,
            layers,
            data.input_shape,
            searches=search.searches_per_example,
            chained=search.below == "found",
            mixed=search.remade,
            archive=search.archive,
            code=STRATEGIES.build({**search.code, "name": "class_code"}, at="search.code") if search.code else None,
        )
        for network in networks
    ]
    return SearchMemory(fixed=max(need.fixed for need in needs), per_example=max(need.per_example for need in needs))


def memory_of(
    strategy: Any,
    network: SearchableNetwork,
    layers: Sequence[int],
    input_shape: Shape,
    *,
    searches: int = 1,
    chained: bool = True,
    mixed: bool = False,
    archive: int = 0,
    code: Any = None,
) -> SearchMemory:
    """Return what searching `layers` of `network` for images of `input_shape` takes.

    `chained`, `archive`, `code`: see `searcher.plan.SearchPlan`. `mixed`: whether targets are others than what was found.
    """
    check_runs_alone(network)
    several = searches if strategy.traits.several else 1
    parts = [_Part.of(strategy, network, layers, position, input_shape, several, chained, archive) for position in range(len(layers))]
    shared = [part.footprint.shared for part in parts]
    if code is not None:
        shapes = [network.layer_shape(layer) for layer in layers]
        shared += [footprint_of(code, position, shape, classes=network.classes, results=1).shared for position, shape in enumerate(shapes)]
    # While a table is made, or grows by the room for parents, a copy of it is there too.
    fixed = 2 * bytes_held(network) + sum(shared) + 2 * max(shared)
    # Results of the layers done, once more where several searches are laid side by side.
    kept = sum(part.kept for part in parts) * (2 * searches if searches > several else 1)
    if mixed:
        # Own representation, way and target of one layer, beside what was found.
        kept += 4 * max(part.kept for part in parts)
    stops = strategy.traits.stops
    resident = math.prod(input_shape) + kept + max(part.resident for part in parts)
    counted = resident * (GROUP_TILES if stops else 1) + max(part.working for part in parts)
    return SearchMemory(fixed=_LIBRARY_BYTES + fixed, per_example=math.ceil(_SAFETY * counted))


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Bytes per image of one layer's search: its results (kept), its state and start (resident), and the most that works on a tile."""

    footprint: Footprint
    kept: int
    resident: int
    working: int

    @classmethod
    def of(
        cls,
        strategy: Any,
        network: SearchableNetwork,
        layers: Sequence[int],
        position: int,
        input_shape: Shape,
        results: int,
        chained: bool,
        archive: int,
    ) -> _Part:
        layer, below = layers[position], layers[position - 1] if position and chained else -1
        shape = network.layer_shape(layer)
        size = math.prod(shape) * FLOAT_BYTES
        found = footprint_of(strategy, position, shape, classes=network.classes, results=results)
        if position and chained:
            starts = footprint_of(strategy, position - 1, network.layer_shape(below), classes=network.classes, results=results).seeds
            noise = 0
        else:
            starts, noise = strategy.starts(position), _NOISE_COPIES * math.prod(input_shape) * FLOAT_BYTES
        starts += archive
        starting = starts * (bytes_below(network, below, layer, input_shape) + noise + size)
        above = bytes_above(network, layer, gradient=strategy.traits.needs_gradient)
        overhead = _INDEX_BYTES * groups_of(shape)[0] + 16 * network.classes
        # New candidates are made while those of the generation before are still there.
        making = (found.candidates + found.working) * size
        searching = found.candidates * (size + overhead) + max(found.candidates * above, making)
        return cls(
            footprint=found,
            kept=(found.results + found.seeds + archive) * size,
            # Where images stop, the states of a group are laid side by side and taken apart again.
            resident=(2 * starts + found.held * (3 if strategy.traits.stops else 1)) * size,
            working=max(starting, searching),
        )


def _mb(size: int) -> str:
    return f"{math.ceil(size / MB):,}"


def _way_out(memory: SearchMemory, budget: int, least: int) -> str:
    room = memory.most(budget)
    lower = f'lower it to {room} or less, set it to "auto", or ' if least > 1 and room else ""
    smaller = "" if room else ", or lower the strategy's population, or search later layers"
    return f"{lower}raise search.memory_mb to {_mb(memory.need(least))} or more{smaller}"
