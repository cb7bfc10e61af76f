"""Targets larger than memory: read from the store in large pieces, ahead of time, never more than a set amount in memory.

A piece is a run of neighbouring examples of one shard. In every epoch the seed shuffles the pieces, and as many as fit in a buffer form a
group: its examples, with those that did not fill a batch of the group before, are shuffled together and cut into batches. One buffer is
learned from while a thread fills the other with the next group, which at the end of an epoch is the first of the next epoch. So

    limit >= 2 buffers + `BESIDE` batches + what the store holds while it reads a chunk

(see `memory`), and every example comes once per epoch, but for the fewer than a batch that are left at its end. The order is a function of
seed, round and epoch alone: a resumed fit needs no state of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from learner.batches import Batch, Batches, TrainingSet, augmented, views_of
from learner.memory import buffer_examples, demand_of, fits
from learner.schedule import steps_per_epoch
from learner.shortage import explained, fewer_targets
from learner.targets import CommittedTargets, Shard, chunks_of, draw_results
from repsearch.config import LearnConfig
from repsearch.datasets.base import Split
from repsearch.seeding import generator

PIECES = 8
"""Pieces that a buffer holds at least, where chunks are small enough; two in any case."""

Buffer = dict[str, np.ndarray]


@dataclass(frozen=True)
class Piece:
    """Examples [start, stop) of a shard, numbered in the shard."""

    shard: Shard
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Group:
    """Pieces that are in a buffer together, in order; `key` is (epoch, number of the group)."""

    key: tuple[int, int]
    pieces: tuple[Piece, ...]

    def examples(self) -> Tensor:
        """Return the examples in the order of the buffer: int64."""
        return torch.cat([torch.arange(piece.shard.first + piece.start, piece.shard.first + piece.stop) for piece in self.pieces])


@contextmanager
def open_batches(device: str, split: Split, targets: CommittedTargets | None, learn: LearnConfig) -> Iterator[Batches]:
    """Give the source of batches: in memory if there is no limit or the targets fit under it, else streamed."""
    if targets is None:
        yield TrainingSet.on(device, split, {})
    elif learn.memory_mb is None or fits(demand_of(targets), learn.memory_mb):
        with explained("reading the round's targets", fewer_targets(demand_of(targets).whole)):
            whole = TrainingSet.on(device, split, targets.whole(), results=targets.drawn())
        yield whole
    else:
        with StreamedSet(device, split, targets, buffer_examples(demand_of(targets), learn.memory_mb, learn.batch_size)) as streamed:
            yield streamed


class StreamedSet:
    """The source of batches for targets that stay in the store, with buffers of `examples`; a context manager, which ends its thread.

    Raises, from `epoch`, what reading a piece raises: see `CommittedTargets.read`.
    """

    def __init__(self, device: str, split: Split, targets: CommittedTargets, examples: int) -> None:
        self._images, self._labels = split.images.to(device), split.labels.to(device)
        self._targets, self._examples, self._piece = targets, examples, _piece_examples(targets, examples)
        self._chosen_N = targets.chosen()
        self._buffers = [self._empty(examples) for _ in range(2)]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="targets")
        self._ahead: tuple[tuple[int, int], Future[int]] | None = None
        self._last = 1  # the buffer filled last

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __len__(self) -> int:
        return len(self._labels)

    def epoch(self, learn: LearnConfig, *, seed: int, round: int, epoch: int) -> Iterator[Batch]:
        """Yield the batches of `epoch`; see `Batches.epoch`."""
        groups = self._groups(learn, seed, round, epoch)
        following = itertools.chain(groups[1:], self._groups(learn, seed, round, epoch + 1)[:1])
        composition = generator(seed, "learn", round, "composition" if learn.fixed_batches else epoch, "groups")
        order = generator(seed, "learn", round, epoch, "order")
        views = views_of(seed, round, epoch)
        left, carried, carried_N = steps_per_epoch(learn, len(self)), self._empty(0), torch.empty(0, dtype=torch.int64)
        for group, after in zip(groups, following, strict=True):
            buffer = self._buffers[self._filled(group, seed, round)]
            self._begin(after, seed, round)
            own_N = group.examples()
            permutation = torch.randperm(len(carried_N) + len(own_N), generator=composition)
            size = min(learn.batch_size, len(self))
            batches = list(torch.split(permutation, size))
            rest = batches.pop() if len(batches[-1]) < size else permutation[:0]
            if learn.fixed_batches:
                batches = [batches[number] for number in torch.randperm(len(batches), generator=order).tolist()]
            for rows_B in batches[:left]:
                index_B, targets = _rows(rows_B, carried_N, carried, own_N, buffer)
                yield self._batch(index_B, targets, learn, views)
            left -= len(batches)
            carried_N, carried = _rows(rest, carried_N, carried, own_N, buffer)

    def _groups(self, learn: LearnConfig, seed: int, round: int, epoch: int) -> list[Group]:
        """Return the groups of an epoch in order: with fixed batches the same in every epoch of the round."""
        size = self._piece
        pieces = [
            Piece(shard, start, min(start + size, shard.count)) for shard in self._targets.shards for start in range(0, shard.count, size)
        ]
        rng = generator(seed, "learn", round, "composition" if learn.fixed_batches else epoch, "pieces")
        shuffled = [pieces[number] for number in torch.randperm(len(pieces), generator=rng).tolist()]
        groups: list[list[Piece]] = [[]]
        for piece in shuffled:
            if sum(map(len, groups[-1])) + len(piece) > self._examples:
                groups.append([])
            groups[-1].append(piece)
        return [Group((epoch, number), tuple(group)) for number, group in enumerate(groups)]

    def _begin(self, group: Group, seed: int, round: int) -> None:
        """Have the thread fill the buffer that is free with `group`."""
        self._last = 1 - self._last
        self._ahead = group.key, self._thread.submit(self._fill, self._last, group, seed, round)

    def _filled(self, group: Group, seed: int, round: int) -> int:
        """Return the number of the buffer that holds `group`, once it does."""
        if self._ahead is None or self._ahead[0] != group.key:
            self._begin(group, seed, round)
        assert self._ahead is not None
        return self._ahead[1].result()

    def _fill(self, number: int, group: Group, seed: int, round: int) -> int:
        """Read `group` into a buffer, chunk by chunk, and return the buffer's number."""
        choice_N = self._chosen_N
        if self._targets.drawn() > 1:
            choice_N = draw_results(len(self), self._targets.searches, seed=seed, round=round, epoch=group.key[0]).numpy()
        for name, values in self._buffers[number].items():
            filled = 0
            for piece in group.pieces:
                for rows in chunks_of(piece.shard, name, range(piece.start, piece.stop)):
                    part, count = self._targets.read(piece.shard, name, rows), rows.stop - rows.start
                    if choice_N is not None:
                        first = piece.shard.first + rows.start
                        part = part[np.arange(count), choice_N[first : first + count]]
                    values[filled : filled + count] = part
                    filled += count
        return number

    def _batch(self, index_B: Tensor, targets: Buffer, learn: LearnConfig, views: torch.Generator) -> Batch:
        device = self._labels.device
        index_B = index_B.to(device)
        images_BCHW = augmented(self._images.index_select(0, index_B), learn, views)
        moved = {name: torch.from_numpy(values).to(device) for name, values in targets.items()}
        return Batch(images_BCHW, self._labels.index_select(0, index_B), moved)

    def _empty(self, examples: int) -> Buffer:
        return {name: np.empty((examples, *shape), self._targets.dtype(name)) for name, shape in self._targets.shapes.items()}


def _rows(rows_B: Tensor, carried_N: Tensor, carried: Buffer, own_N: Tensor, buffer: Buffer) -> tuple[Tensor, Buffer]:
    """Return the examples and targets of `rows_B`, which number the carried examples first, then those of the buffer."""
    index_B = torch.cat([carried_N, own_N])[rows_B]
    before_B = (rows_B < len(carried_N)).numpy()
    old, new = rows_B.numpy()[before_B], rows_B.numpy()[~before_B] - len(carried_N)
    if not len(old):
        return index_B, {name: values[new] for name, values in buffer.items()}
    taken: Buffer = {}
    for name, values in buffer.items():
        taken[name] = np.empty((len(rows_B), *values.shape[1:]), values.dtype)
        taken[name][before_B] = carried[name][old]
        taken[name][~before_B] = values[new]
    return index_B, taken


def _piece_examples(targets: CommittedTargets, buffer: int) -> int:
    """Return the examples of a piece: whole chunks of the largest array, unless a buffer holds no two of those."""
    # A chunk is verified whole, however few of its rows are wanted.
    chunk = min(shard.manifest.arrays[name].chunk_rows for shard in targets.shards for name in targets.shapes)
    return buffer // PIECES // chunk * chunk or max(1, min(chunk, buffer // 2))
