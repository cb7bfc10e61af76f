"""What targets take in memory, and how many examples fit under `learn.memory_mb`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from learner.targets import CommittedTargets
from repsearch.config import RunConfig
from repsearch.errors import ConfigError

MB = 1e6
BESIDE = 4
"""Batches of targets in memory beside the buffers: carried from group to group, being formed, and learned from."""
READ_COPIES = 4
"""Times that the store holds a chunk while it reads it: file, checked, decoded and selected."""
MOST_EXAMPLES = 8192
"""Examples of a shard whose size is chosen, at most; see `orchestrator.sharding`."""
_BYTES = {"float16": 2, "bfloat16": 4, "float32": 4}


@dataclass(frozen=True)
class Demand:
    """Bytes in memory. example: targets of one example. reading: what the store holds at most while it reads a chunk. whole: all targets,
    and what the store holds while it reads an array of a shard."""

    example: int
    reading: int
    whole: int


def demand_of(targets: CommittedTargets) -> Demand:
    """Return what committed targets take."""
    sizes = [targets.result_bytes(name) for name in targets.shapes]
    rows = {name: max(shard.manifest.arrays[name].chunk_rows for shard in targets.shards) for name in targets.shapes}
    chunk = targets.searches * max(targets.result_bytes(name) * rows[name] for name in targets.shapes)
    shard = max(shard.count for shard in targets.shards) * targets.searches * max(sizes)
    return Demand(sum(sizes), READ_COPIES * chunk, len(targets) * targets.drawn() * sum(sizes) + 2 * shard)


def check_memory(config: RunConfig, shapes: Sequence[tuple[int, ...]], examples: int) -> None:
    """Raise `ConfigError` if `learn.memory_mb` is too little for targets of `shapes` that have yet to be searched."""
    if config.learn.memory_mb is None or not shapes:
        return
    searches, size = config.search.searches_per_example, _BYTES[config.store.dtype]
    sizes = [size * math.prod(shape) for shape in shapes]
    largest = MOST_EXAMPLES if config.searcher.shard_examples == "auto" else config.searcher.shard_examples
    shard = min(largest, examples) * searches * max(sizes)
    chunk = min(shard, max(int(config.store.chunk_mb * MB * _BYTES[config.store.dtype] / 2), searches * max(sizes)))
    drawn = searches if config.learn.targets == "random" else 1
    demand = Demand(sum(sizes), READ_COPIES * chunk, examples * drawn * sum(sizes) + 2 * shard)
    if not fits(demand, config.learn.memory_mb):
        buffer_examples(demand, config.learn.memory_mb, config.learn.batch_size)


def fits(demand: Demand, limit_mb: float) -> bool:
    """Return whether all targets fit in memory."""
    return demand.whole <= limit_mb * MB


def buffer_examples(demand: Demand, limit_mb: float, batch_size: int) -> int:
    """Return how many examples each of two buffers holds; raises `ConfigError` with the least limit if none holds a batch."""
    beside = demand.reading + BESIDE * batch_size * demand.example
    buffer = int((limit_mb * MB - beside) // (2 * demand.example))
    if buffer < batch_size:
        least = math.ceil((beside + 2 * batch_size * demand.example) / MB * 10) / 10
        raise ConfigError(
            f"learn.memory_mb: {limit_mb:g} MB do not hold two buffers of a batch of {batch_size} examples, {demand.example / 1e3:.1f} kB "
            f"each, and chunks while they are read; set it to {least:g} or more, or lower learn.batch_size or store.chunk_mb"
        )
    return buffer
