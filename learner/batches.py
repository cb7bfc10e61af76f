"""Where batches come from: the training set in memory, in an order from the seed.

Data stay uint8, and targets in stored precision, until a batch is formed. `streaming` has the source for targets that do not fit in memory.
Shapes: N training examples, B of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from learner.schedule import epoch_batches
from learner.targets import draw_results
from repsearch.config import LearnConfig
from repsearch.datasets.augmentation import augment
from repsearch.datasets.base import Split
from repsearch.seeding import generator


@dataclass(frozen=True)
class Batch:
    """images: uint8 (B, C, H, W), augmented. labels: int64 (B,). targets: name -> (B, X) in stored precision."""

    images: Tensor
    labels: Tensor
    targets: Mapping[str, Tensor]


class Batches(Protocol):
    """A source of batches: a function of (data, configuration, seed, round, epoch) alone."""

    def __len__(self) -> int:
        """Number of training examples."""
        ...

    def epoch(self, learn: LearnConfig, *, seed: int, round: int, epoch: int) -> Iterator[Batch]:
        """Yield the batches of `epoch` (from 1), as many as `steps_per_epoch` says."""
        ...


@dataclass(frozen=True)
class TrainingSet:
    """The source in memory, on the network's device.

    images: uint8 (N, C, H, W). labels: int64 (N,). targets: name -> (N, X) in stored precision; (N, R, X) where `results` R > 1, of which
    every epoch draws one per example, `drawn` (N,).
    """

    images: Tensor
    labels: Tensor
    targets: Mapping[str, Tensor]
    results: int = 1
    drawn: Tensor | None = None

    @classmethod
    def on(cls, device: str, split: Split, targets: Mapping[str, Tensor], *, results: int = 1) -> TrainingSet:
        """Return the training set of `split` and `targets`, moved to `device`."""
        moved = {name: target.to(device) for name, target in targets.items()}
        return cls(split.images.to(device), split.labels.to(device), moved, results)

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(self, learn: LearnConfig, *, seed: int, round: int, epoch: int) -> Iterator[Batch]:
        """Yield the batches of `epoch`; see `Batches.epoch`."""
        drawn = self.of_epoch(seed=seed, round=round, epoch=epoch)
        views = views_of(seed, round, epoch)
        for batch_B in epoch_batches(learn, len(self), seed=seed, round=round, epoch=epoch):
            index_B = batch_B.to(self.labels.device)
            images_BCHW = augmented(self.images.index_select(0, index_B), learn, views)
            yield Batch(images_BCHW, self.labels.index_select(0, index_B), drawn.targets_at(index_B))

    def of_epoch(self, *, seed: int, round: int, epoch: int) -> TrainingSet:
        """Return the set with the results drawn for `epoch`: the same if there is one result per example."""
        if self.results == 1:
            return self
        drawn_N = draw_results(len(self), self.results, seed=seed, round=round, epoch=epoch)
        return replace(self, drawn=drawn_N.to(self.labels.device))

    def targets_at(self, index_B: Tensor) -> dict[str, Tensor]:
        """Return the targets (B, X) of the examples `index_B`."""
        if self.drawn is None:
            return {name: target.index_select(0, index_B) for name, target in self.targets.items()}
        rows_B = index_B * self.results + self.drawn.index_select(0, index_B)
        return {name: target.flatten(0, 1).index_select(0, rows_B) for name, target in self.targets.items()}


def views_of(seed: int, round: int, epoch: int) -> torch.Generator:
    """Return the generator of an epoch's augmentation, drawn from in the order of the batches."""
    return generator(seed, "learn", round, epoch, "augmentation")


def augmented(images_BCHW: Tensor, learn: LearnConfig, views: torch.Generator) -> Tensor:
    """Return the batch's images as the learner sees them in this epoch."""
    return augment(images_BCHW, flip=learn.flip, pad_crop=learn.pad_crop, rng=views)
