"""Wrong labels on purpose: a share of the training labels replaced, to measure how a method bears dirty data.

Each label is replaced with probability `label_noise` by one of the other classes, all equally likely, drawn by the run's seed and the
example's position alone: a smaller training subset is still the beginning of a larger one, with the same wrong labels. Test labels
are never touched. The dataset digest is that of the labels as they are then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from repsearch.datasets.base import Split
from repsearch.seeding import draw, keys_of, seed_of

_STEPS = 1 << 24
"""Steps in which a probability is drawn."""


@dataclass(frozen=True, kw_only=True)
class LabelNoise:
    """Fields of a dataset whose labels can be made wrong.

    label_noise: share of training labels replaced by another class, drawn by the run's seed; test labels stay right.
    validation_noise: the same for validation labels; none: as for training labels, since who has wrong labels has them in both.
    """

    label_noise: Annotated[float, Field(ge=0, lt=1)] = 0.0
    validation_noise: Annotated[float, Field(ge=0, lt=1)] | None = None

    def disturbed_fitness(self, fitness: Split, *, classes: int, seed: int) -> Split:
        """Return the split for fitness, whose labels are as wrong as those of training, of which it is a part."""
        noise = seed_of(seed, "label noise", "fitness")
        return Split(fitness.images, wrong_labels(fitness.labels, self.label_noise, classes=classes, seed=noise))

    def disturbed(self, train: Split, validation: Split, *, classes: int, seed: int) -> tuple[Split, Split]:
        """Return both splits with the share of wrong labels that the fields say."""
        validation_noise = self.label_noise if self.validation_noise is None else self.validation_noise
        return (
            Split(train.images, wrong_labels(train.labels, self.label_noise, classes=classes, seed=seed_of(seed, "label noise", "train"))),
            Split(
                validation.images,
                wrong_labels(validation.labels, validation_noise, classes=classes, seed=seed_of(seed, "label noise", "validation")),
            ),
        )


def wrong_labels(labels_N: Tensor, share: float, *, classes: int, seed: int) -> Tensor:
    """Return int64 labels, each with probability `share` one of the other `classes - 1` classes; `labels_N` itself for a share of 0."""
    if share == 0 or classes < 2:
        return labels_N
    keys_N = keys_of(seed, torch.arange(len(labels_N)))
    replaced_N = draw(keys_N, torch.tensor(0), _STEPS) < round(share * _STEPS)
    shift_N = 1 + draw(keys_N, torch.tensor(1), classes - 1)
    return torch.where(replaced_N, (labels_N + shift_N) % classes, labels_N)
